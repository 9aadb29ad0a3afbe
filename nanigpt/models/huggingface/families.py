"""All families of Hugging Face models that nanigpt can map, and the search for a model's family."""

from nanigpt.errors import UsageError
from nanigpt.models.decoder import Decoder
from nanigpt.models.huggingface.deepseek_v3 import DEEPSEEK_V3
from nanigpt.models.huggingface.gpt_oss import GPT_OSS
from nanigpt.models.huggingface.llama import LLAMA
from nanigpt.models.huggingface.llama4 import LLAMA4
from nanigpt.models.huggingface.mapping import Family, weights
from nanigpt.models.huggingface.qwen3 import QWEN3
from nanigpt.models.huggingface.qwen3_moe import QWEN3_MOE
from nanigpt.words import listed

FAMILIES = (LLAMA, QWEN3, QWEN3_MOE, LLAMA4, GPT_OSS, DEEPSEEK_V3)


def family_of(model: Decoder, families: tuple[Family, ...] = FAMILIES) -> Family:
    """Find the family that has a rule for each of the model's weights, and fields for the rest.

    Raises:
        UsageError: No family fits. The message says why each one does not.
    """
    names = list(weights(model))
    reasons = []
    for family in families:
        _, unknown = family.links(names)
        if unknown:
            reasons.append(f"{family.model_type} has no {listed(unknown, 3)}")
            continue
        try:
            family.fields(model)
        except UsageError as error:
            reasons.append(f"{family.model_type}: {error}")
            continue
        return family
    raise UsageError(
        "no family of transformers models matches this model:\n  - " + "\n  - ".join(reasons)
    )
