"""Sequences and their order."""

import fiddle as fdl
import numpy as np
import pytest
import torch

from nanigpt.config.check.assembly import Assembly
from nanigpt.data.corpus import TRAIN, VALIDATION, TextCorpus
from nanigpt.data.dataset import PackedDataset
from nanigpt.data.shuffle import permute
from nanigpt.data.token_cache import open_tokens, tokenize_corpus
from nanigpt.data.tokenizer import ByteTokenizer
from nanigpt.errors import UsageError


def dataset(text_file, sequence_length=32):
    made = PackedDataset(
        corpus=TextCorpus(path=str(text_file)),
        tokenizer=ByteTokenizer(),
        sequence_length=sequence_length,
    )
    made.setup()
    return made


class Digits:
    """A tokenizer of another package, which transformers does not know."""

    vocab_size = 11
    end_id = 10

    def encode(self, texts):
        return [np.array([int(c) for c in text if c.isdigit()], dtype=np.uint8) for text in texts]

    def decode(self, ids):
        return "".join(str(i) for i in ids if i != self.end_id)

    def token_bytes(self):
        return np.array([1] * 10 + [0])

    def identity(self):
        return "digits"


class Counting:
    """A corpus of another package."""

    def documents(self):
        for i in range(100):
            yield VALIDATION if i % 10 == 0 else TRAIN, str(i**9)

    def identity(self):
        return "counting"


def test_a_corpus_and_a_tokenizer_of_another_package_fit():
    parts = {"corpus": fdl.Config(Counting), "tokenizer": fdl.Config(Digits)}
    assembly = Assembly(fdl.Config(PackedDataset, **parts, sequence_length=8))
    assembly.check()
    made = assembly.root
    made.setup()
    first = made.validation_batch([0]).tokens_BL[0].tolist()
    assert first[:2] == [0, 10]  # 0**9 and its end
    assert Digits().decode(first[2:]) == str(10**9)[:6]


def test_tokens_are_the_documents_each_with_its_end(text_file):
    corpus = TextCorpus(path=str(text_file))
    folder = tokenize_corpus(corpus, ByteTokenizer())
    for split in (TRAIN, VALIDATION):
        expected = [
            t for s, text in corpus.documents() if s == split for t in [*text.encode(), 256]
        ]
        assert open_tokens(folder, split).tolist() == expected


def test_the_cache_is_found_again_and_renewed(text_file):
    corpus = TextCorpus(path=str(text_file))
    first = tokenize_corpus(corpus, ByteTokenizer())
    stamp = (first / "train.bin").stat().st_mtime_ns
    assert tokenize_corpus(corpus, ByteTokenizer()) == first
    assert (first / "train.bin").stat().st_mtime_ns == stamp
    text_file.write_text("something else\n" * 50)
    assert tokenize_corpus(corpus, ByteTokenizer()) != first


def test_labels_are_the_next_tokens(text_file):
    data = dataset(text_file)
    batch = data.train_batch(range(5), seed=0)
    assert batch.tokens_BL.shape == batch.labels_BL.shape == (5, 32)
    assert torch.equal(batch.tokens_BL[:, 1:], batch.labels_BL[:, :-1])


def test_an_epoch_has_every_sequence_once_in_an_order_of_its_own(text_file):
    data = dataset(text_file)
    n = data.n_sequences(TRAIN)
    stream = open_tokens(tokenize_corpus(data.corpus, data.tokenizer), TRAIN)
    expected = sorted(stream[: n * 32].reshape(n, 32).tolist())
    epochs = [data.train_batch(range(e * n, e * n + n), seed=0).tokens_BL.tolist() for e in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == expected
    assert epochs[0] != epochs[1]
    assert epochs[0] != data.train_batch(range(n), seed=1).tokens_BL.tolist()


def test_a_sample_does_not_depend_on_the_batch_it_is_in(text_file):
    data = dataset(text_file)
    whole = data.train_batch(range(100, 116), seed=3).tokens_BL
    parts = [data.train_batch(range(a, a + 4), seed=3).tokens_BL for a in range(100, 116, 4)]
    assert torch.equal(whole, torch.cat(parts))


@pytest.mark.parametrize("size", [1, 2, 3, 10, 64, 1000, 12345])
def test_permutation_is_a_bijection(size):
    order = np.array([permute(i, size=size, seed=1, epoch=2) for i in range(size)])
    assert sorted(order.tolist()) == list(range(size))


def test_the_order_of_samples_is_that_of_earlier_versions():
    """A resumed run reads on where an older version of this project stopped."""
    order = [permute(i, size=10, seed=1, epoch=2) for i in range(10)]
    assert order == [4, 0, 8, 7, 6, 9, 1, 3, 5, 2]


def test_permutation_looks_random():
    order = np.array([permute(i, size=10_000, seed=0, epoch=0) for i in range(10_000)])
    assert abs(np.corrcoef(np.arange(10_000), order)[0, 1]) < 0.05
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05
    other = np.array([permute(i, size=10_000, seed=1, epoch=0) for i in range(10_000)])
    assert (order == other).sum() < 20


def test_a_corpus_too_small_is_refused_with_its_size(tmp_path):
    path = tmp_path / "small.txt"
    path.write_text("a few words\n" * 20)
    with pytest.raises(
        UsageError, match="sequence_length=64: expected less than the tokens of each split"
    ):
        dataset(path, sequence_length=64)
