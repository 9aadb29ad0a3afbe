"""Define the interface of datasets, for samples of any kind."""

from typing import Protocol

from nanigpt.data.batch import Batch


class DataSource(Protocol):
    """Samples to train on, in an order that depends on the seed alone, and samples held out.

    Any rank can compute any sample, so the number of samples consumed is the only state.

    A dataset of sequences may also have `sequence_length`, the tokens of a sample: metrics and
    FLOPs then count tokens, and otherwise samples. It may have `summary()`, a phrase to print when
    training starts, and `mask_documents`, whether batches restrict which positions see each other.

    Attributes:
        digest: Text that differs between datasets of different samples, known after `setup`.
    """

    digest: str

    @property
    def n_validation(self) -> int:
        """Return the number of samples held out."""
        ...

    def setup(self) -> None:
        """Read or make the data of the samples. Every rank calls it, perhaps twice."""

    def train_batch(self, samples: range, /, *, seed: int) -> Batch:
        """Return the training samples numbered `samples`, counted from the start of the run."""
        ...

    def validation_batch(self, samples: list[int], /) -> Batch:
        """Return the held-out samples of these numbers."""
        ...
