"""A random order of any number of items that needs no memory.

A permutation of a trillion sequences cannot be stored on every rank; a keyed bijection of
`[0, n)` is computed where it is looked up.
"""

import hashlib

import numpy as np

_ROUNDS = 6


def permute(index: np.ndarray, *, size: int, seed: int, epoch: int) -> np.ndarray:
    """Positions of `index` in the permutation of `[0, size)` that belongs to (seed, epoch).

    A balanced Feistel network over the next even number of bits is a bijection of a range at
    most four times too large; values that fall outside `[0, size)` are sent through it again until
    they fall inside ("cycle walking": Black and Rogaway, 2002).
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    keys = [_key(seed, epoch, r) for r in range(_ROUNDS)]
    value = index.astype(np.uint64)
    outside = np.ones(value.shape, dtype=bool)
    while outside.any():
        value[outside] = _feistel(value[outside], half, keys)
        outside = value >= size
    return value.astype(np.int64)


def _feistel(value: np.ndarray, half: int, keys: list[np.uint64]) -> np.ndarray:
    mask = np.uint64((1 << half) - 1)
    left, right = value >> np.uint64(half), value & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << np.uint64(half)) | right


def _mix(value: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014)."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def _key(seed: int, epoch: int, feistel_round: int) -> np.uint64:
    digest = hashlib.blake2b(f"{seed}/{epoch}/{feistel_round}".encode(), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))
