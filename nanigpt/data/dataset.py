"""Pack tokens into sequences, in an order that depends on the seed alone.

Shapes: B batch, L sequence_length.
"""

from typing import Annotated

import numpy as np
import torch

from nanigpt import tags
from nanigpt.data.batch import TokenBatch
from nanigpt.data.corpus import TRAIN, VALIDATION, Corpus
from nanigpt.data.shuffle import permute
from nanigpt.data.token_cache import open_tokens, tokenize_corpus, tokens_digest
from nanigpt.data.tokenizer import Tokenizer
from nanigpt.problems import refuse, require_positive


class PackedDataset:
    """Corpus as one stream of tokens, cut into sequences without padding.

    Sample i of a run is a pure function of (corpus, tokenizer, sequence length, seed, i): every
    rank can compute any sample, and the number of samples consumed is the only state.

    Args:
        mask_documents: Whether tokens see only tokens of their own document, and not those of
            documents before it in the sequence.
    """

    def __init__(
        self,
        *,
        corpus: Corpus,
        tokenizer: Tokenizer,
        sequence_length: Annotated[int, tags.SequenceLength],
        mask_documents: bool = False,
    ):
        require_positive(sequence_length=sequence_length)
        self.corpus = corpus
        self.tokenizer = tokenizer
        self.sequence_length = sequence_length
        self.mask_documents = mask_documents
        self._tokens: dict[str, np.ndarray] = {}
        self.digest = ""

    def setup(self) -> None:
        """Tokenize the corpus once, or find the tokens of an earlier run.

        Afterwards, `digest` differs between different texts.

        Raises:
            ComponentError: The corpus cannot be read, or does not fill one sequence for each split.
        """
        if self._tokens:
            return
        folder = tokenize_corpus(self.corpus, self.tokenizer)
        self.digest = tokens_digest(folder)
        self._tokens = {split: open_tokens(folder, split) for split in (TRAIN, VALIDATION)}
        short = [s for s in self._tokens if self.n_sequences(s) == 0]
        if short:
            have = ", ".join(f"{len(t):,} {split}" for split, t in self._tokens.items())
            refuse(
                "sequence_length",
                self.sequence_length,
                f"less than the tokens of each split, which are {have}",
                "a shorter sequence, more text, or another validation_fraction of the corpus",
                component=self,
            )

    def n_sequences(self, split: str) -> int:
        return max(len(self._tokens[split]) - 1, 0) // self.sequence_length

    @property
    def n_validation(self) -> int:
        """Return the number of validation sequences."""
        return self.n_sequences(VALIDATION)

    def summary(self) -> str:
        """Describe the training data after `setup`."""
        return f"{self.n_tokens(TRAIN):,} training tokens"

    def n_tokens(self, split: str) -> int:
        return len(self._tokens[split])

    def train_batch(self, samples: range, /, *, seed: int) -> TokenBatch:
        """Return the training samples numbered `samples`, counted from the start of the run.

        Each epoch goes through all sequences in its own order.
        """
        size = self.n_sequences(TRAIN)
        sequences = [permute(i % size, size=size, seed=seed, epoch=i // size) for i in samples]
        return self._batch(TRAIN, sequences)

    def validation_batch(self, samples: list[int], /) -> TokenBatch:
        """Return the validation sequences of these numbers, in the corpus's order."""
        return self._batch(VALIDATION, samples)

    def _batch(self, split: str, sequences: list[int]) -> TokenBatch:
        length, tokens = self.sequence_length, self._tokens[split]
        rows = [tokens[i * length : i * length + length + 1] for i in sequences]
        rows_BL = torch.from_numpy(np.stack(rows).astype(np.int64))
        documents_BL = None
        if self.mask_documents:  # the end of one document is the beginning of the next
            documents_BL = (rows_BL[:, :-1] == self.tokenizer.end_id).cumsum(1)
        # These are copies, so masking a label does not change the token that it came from.
        return TokenBatch(
            tokens_BL=rows_BL[:, :-1].clone(),
            labels_BL=rows_BL[:, 1:].clone(),
            documents_BL=documents_BL,
        )
