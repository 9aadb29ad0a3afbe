"""A tokenizer of printable ASCII characters."""

import string

import numpy as np


class AsciiTokenizer:
    """One id for each printable character of ASCII, one for all others, one for the end."""

    def __init__(self, *, lower: bool = False):
        self.lower = lower
        characters = string.printable
        if lower:
            characters = "".join(dict.fromkeys(characters.lower()))
        self._characters = characters
        self._ids = {character: i for i, character in enumerate(characters)}

    @property
    def vocab_size(self) -> int:
        return len(self._characters) + 2

    @property
    def end_id(self) -> int:
        return len(self._characters) + 1

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """Return the ids of each text, without the end of the document."""
        other = len(self._characters)
        lowered = (text.lower() if self.lower else text for text in texts)
        return [
            np.array([self._ids.get(character, other) for character in text], dtype=np.uint8)
            for text in lowered
        ]

    def decode(self, ids: list[int]) -> str:
        n = len(self._characters)
        return "".join(self._characters[i] if i < n else "?" for i in ids if i != self.end_id)

    def token_bytes(self) -> np.ndarray:
        """Return the bytes of text that each id stands for; an unknown character counts as one."""
        return np.array([1] * (len(self._characters) + 1) + [0])

    def identity(self) -> str:
        """Return a text that is equal for tokenizers that give the same ids."""
        return f"ascii-{'lower' if self.lower else 'both'}"
