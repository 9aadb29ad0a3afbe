"""Runs of models that a config.json of Hugging Face describes: `--config=huggingface:DIR`.

The model is the file's. The file says nothing about training, so the run around it is that of
`pretraining` with common values, which edits may replace. A multimodal model gives its text model.
"""

import functools
import logging
import shlex
from pathlib import Path

import fiddle as fdl
import torch

from nanigpt.config.check.build import check
from nanigpt.config.registry import source
from nanigpt.data.tokenizer import HuggingFaceTokenizer
from nanigpt.errors import UsageError
from nanigpt.experiments.huggingface_models import MODELS
from nanigpt.experiments.pretraining import pretraining
from nanigpt.models.decoder import Decoder
from nanigpt.models.huggingface.config_json import (
    MISFITS,
    Fields,
    find_family,
    no_model,
    normalized,
    read_object,
    uncarried,
)
from nanigpt.models.huggingface.fields import differences
from nanigpt.models.huggingface.mapping import Family
from nanigpt.training.trainer import Trainer

log = logging.getLogger(__name__)

_LONGEST = 8192  # tokens in a sequence of training


@source
def huggingface(path: str) -> fdl.Config[Trainer]:
    """Train the model of a folder's config.json, with its tokenizer.json if there is one."""
    given = Path(path)
    file = given / "config.json" if given.is_dir() else given
    if not file.is_file():
        raise UsageError(f"{file}: no such file; expected a folder with config.json")
    try:
        model = _model(file)
    except UsageError as error:
        raise error.within(str(file)) from error
    cfg = pretraining(
        model,
        lr=3e-4,
        global_batch_size=256,
        local_batch_size=1,
        sequence_length=min(_positions(model), _LONGEST),
    )
    tokenizer = file.with_name("tokenizer.json")
    if tokenizer.is_file():
        cfg.data.tokenizer = fdl.Config(HuggingFaceTokenizer, path=str(tokenizer))
    if any(file.parent.glob("*.safetensors")):
        start = shlex.join([f"--config=set:initial_weights={file.parent}"])
        _announce(f"{file.parent} has weights: to begin with them, add {start}")
    return cfg


@functools.cache  # a sweep composes its config many times
def _announce(message: str) -> None:
    log.info(message)


def _model(file: Path) -> fdl.Config[Decoder]:
    """Return the config of a file's model, after the check that `convert` does."""
    family, config = find_family(read_object(file))
    fields = normalized(config, family)
    try:
        cfg = MODELS[family.model_type](fields, _compute_dtype(config))
    except UsageError:
        raise
    except MISFITS as error:
        raise no_model(config, family, error) from error
    problems = _problems(config, family, fields, cfg)
    if problems:
        raise UsageError("".join(["it has another model than nanigpt can build:", *problems]))
    if family.further is not None and config.get(family.further):
        number = f"{family.further}={config[family.further]}"
        _announce(
            f"{file}: {number} is left out; nanigpt reads no layers that predict further tokens"
        )
    return cfg


def _problems(config: dict, family: Family, fields: Fields, cfg: fdl.Config[Decoder]) -> list[str]:
    described = family.fields(check(cfg))
    found = [*differences(described, fields), *uncarried(config, family, fields, described)]
    return [f"\n  - {line}" for line in found]


def _compute_dtype(config: dict) -> torch.dtype:
    """Return float32 if the weights have it, and bfloat16 for all others."""
    stored = config.get("dtype", config.get("torch_dtype"))
    return torch.float32 if stored == "float32" else torch.bfloat16


def _positions(model: fdl.Config[Decoder]) -> int:
    ropes = (getattr(block.attention, "rope", None) for block in model.layers)
    return min(rope.max_sequence_length for rope in ropes if rope is not None)
