"""What a run reads."""

import fiddle as fdl

from nanigpt.config.registry import fiddler
from nanigpt.data.tokenizer import ByteTokenizer, HuggingFaceTokenizer
from nanigpt.training.trainer import Trainer


@fiddler
def tokenizer(cfg: fdl.Config[Trainer], path: str) -> None:
    """Reads text through the Hugging Face tokenizer.json at `path`."""
    cfg.data.tokenizer = fdl.Config(HuggingFaceTokenizer, path=path)


@fiddler
def byte_tokenizer(cfg: fdl.Config[Trainer]) -> None:
    """Reads text as bytes."""
    cfg.data.tokenizer = fdl.Config(ByteTokenizer)
