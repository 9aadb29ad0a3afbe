"""Every family that has a mapping, and which of them a model is."""

from nanigpt.errors import UsageError
from nanigpt.models.decoder import Decoder
from nanigpt.models.huggingface.deepseek_v3 import DEEPSEEK_V3
from nanigpt.models.huggingface.gpt_oss import GPT_OSS
from nanigpt.models.huggingface.llama import LLAMA
from nanigpt.models.huggingface.llama4 import LLAMA4
from nanigpt.models.huggingface.mapping import Family, weights
from nanigpt.models.huggingface.qwen3 import QWEN3
from nanigpt.models.huggingface.qwen3_moe import QWEN3_MOE

FAMILIES = (LLAMA, QWEN3, QWEN3_MOE, LLAMA4, GPT_OSS, DEEPSEEK_V3)


def family_of(model: Decoder, families: tuple[Family, ...] = FAMILIES) -> Family:
    """The family that has a rule for each of the model's weights, and a field for the rest.

    Raises:
        UsageError: there is none; the message has what each of them lacks.
    """
    names = list(weights(model))
    reasons = []
    for family in families:
        _, unknown = family.links(names)
        if unknown:
            more = f" and {len(unknown) - 3} more" if unknown[3:] else ""
            reasons.append(f"{family.model_type} has no {', '.join(unknown[:3])}{more}")
            continue
        try:
            family.fields(model)
        except UsageError as error:
            reasons.append(f"{family.model_type}: {error}")
            continue
        return family
    raise UsageError(
        "no model of transformers that is known here is like this one:\n  - "
        + "\n  - ".join(reasons)
    )
