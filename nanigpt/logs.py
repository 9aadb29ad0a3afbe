"""Hide messages of other libraries that users need not read."""

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def errors_only(*loggers: str) -> Iterator[None]:
    """Show only the errors of these loggers, and of those below them."""
    found = [logging.getLogger(name) for name in loggers]
    levels = [logger.level for logger in found]
    for logger in found:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(found, levels, strict=True):
            logger.setLevel(level)


def import_torchao() -> None:
    """Import torchao without its warnings.

    It warns about its own use of PyTorch, and on a machine without GPUs about each kernel that it
    cannot load.

    Raises:
        ImportError: torchao is not installed, or is incomplete.
    """
    import torch

    kernels = [] if torch.cuda.is_available() else ["torchao"]
    with errors_only("torch.utils._pytree", *kernels):
        import torchao  # noqa: F401
