"""Messages of other libraries that tell a user nothing."""

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def errors_only(*loggers: str) -> Iterator[None]:
    """Within it these loggers, and those below them, tell errors, and nothing else."""
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
    """Imports torchao, which warns of its own use of PyTorch, and without a GPU of each kernel for
    GPUs that it cannot load.

    Raises:
        ImportError: it is not installed, or not whole.
    """
    import torch

    kernels = [] if torch.cuda.is_available() else ["torchao"]
    with errors_only("torch.utils._pytree", *kernels):
        import torchao  # noqa: F401
