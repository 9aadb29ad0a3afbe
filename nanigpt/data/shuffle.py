"""A random order of any number of items that needs no memory.

No rank can store a permutation of a trillion sequences. A keyed bijection of `[0, n)` computes each
entry when it is needed.
"""

import functools
import hashlib

_ROUNDS = 6
_64_BITS = (1 << 64) - 1


def permute(index: int, *, size: int, seed: int, epoch: int) -> int:
    """Return the place of `index` in the permutation of `[0, size)` that (seed, epoch) selects.

    A balanced Feistel network over the next even number of bits is a bijection of a range that is
    at most four times too large. A value outside `[0, size)` goes through the network again until
    it is inside ("cycle walking": Black and Rogaway, 2002).
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    keys = _keys(seed, epoch)
    value = _feistel(index, half, keys)
    while value >= size:
        value = _feistel(value, half, keys)
    return value


def _feistel(value: int, half: int, keys: list[int]) -> int:
    mask = (1 << half) - 1
    left, right = value >> half, value & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << half) | right


def _mix(value: int) -> int:
    """Apply the finalizer of SplitMix64 (Steele, Lea and Flood, 2014)."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _64_BITS
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _64_BITS
    return value ^ (value >> 31)


@functools.lru_cache(maxsize=8)
def _keys(seed: int, epoch: int) -> list[int]:
    texts = (f"{seed}/{epoch}/{feistel_round}" for feistel_round in range(_ROUNDS))
    digests = (hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return [int.from_bytes(digest, "little") for digest in digests]
