"""Tokenizers: text to ids and back, and the number of bytes that each id stands for."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from nanigpt.problems import ComponentError, Problem, refuse, refuse_all


class Tokenizer(Protocol):
    """Conversion of text to ids and back.

    It may also have `files() -> dict[str, str]`: the content, by name, of the files from which
    transformers makes this tokenizer. An export of a run's weights writes them.
    """

    @property
    def vocab_size(self) -> int:
        """Return one more than the largest id."""
        ...

    @property
    def end_id(self) -> int:
        """Return the id that ends a document."""
        ...

    def encode(self, texts: Sequence[str], /) -> list[np.ndarray]:
        """Return the ids of each text, without the end of document."""
        ...

    def decode(self, ids: Sequence[int], /) -> str:
        """Return the text of ids; bytes that are not UTF-8 are replaced."""
        ...

    def token_bytes(self) -> np.ndarray:
        """Return the number of bytes of text that each id stands for, [vocab_size]."""
        ...

    def identity(self) -> str:
        """Return a text that is equal for tokenizers that give the same ids."""
        ...


class ByteTokenizer:
    """UTF-8 bytes as ids 0 to 255, and 256 for the end of a document. It needs no file."""

    vocab_size = 257
    end_id = 256

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the ids of each text, without the end of document."""
        return [np.frombuffer(text.encode(), dtype=np.uint8) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids; bytes that are not UTF-8 are replaced."""
        return bytes(i for i in ids if i < 256).decode(errors="replace")

    def token_bytes(self) -> np.ndarray:
        """Return the number of bytes of text that each id stands for, [vocab_size]."""
        return np.array([1] * 256 + [0])

    def identity(self) -> str:
        """Return a text that is equal for tokenizers that give the same ids."""
        return "bytes"

    def files(self) -> dict[str, str]:
        """Return no file: transformers has no such tokenizer."""
        return {}


class HuggingFaceTokenizer:
    """A `tokenizer.json` in the format of Hugging Face `tokenizers`.

    Args:
        path: The file.
        end_token: The token that ends a document. None takes the first of the usual ones that the
            file has.
    """

    _END_TOKENS = ("<|end_of_text|>", "<|endoftext|>", "</s>", "<eos>", "<|im_end|>", "[SEP]")

    def __init__(self, *, path: str, end_token: str | None = None):
        self.path = path
        self.end_token = end_token
        self._loaded: Any = None  # the constructor reads no file

    def missing(self) -> list[Problem]:
        """Return a problem if the file is not there; do not open it."""
        found = Problem("path", self.path, "a file tokenizer.json", component=self)
        return [] if Path(self.path).is_file() else [found]

    @property
    def _tokenizer(self) -> Any:
        if self._loaded is None:
            from tokenizers import Tokenizer

            refuse_all(self.missing())
            try:
                self._loaded = Tokenizer.from_file(self.path)
            except Exception as error:  # the library raises bare Exception
                expected = f"a tokenizer.json of Hugging Face ({error})"
                problem = Problem("path", self.path, expected, component=self)
                raise ComponentError(problem) from error
            # A file may carry settings for batches of a fixed length, which would cut the corpus.
            self._loaded.no_truncation()
            self._loaded.no_padding()
        return self._loaded

    @property
    def vocab_size(self) -> int:
        """Return one more than the largest id, including added tokens."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def end_id(self) -> int:
        """Return the id of `end_token`."""
        names = (self.end_token,) if self.end_token is not None else self._END_TOKENS
        for name in names:
            token = self._tokenizer.token_to_id(name)
            if token is not None:
                return token
        expected = f"the end-of-document token of {self.path!r}, which has no {', '.join(names)}"
        refuse("end_token", self.end_token, expected, component=self)

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the ids of each text, without special tokens."""
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [np.array(e.ids, dtype=np.uint32) for e in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids."""
        return self._tokenizer.decode(list(ids))

    def token_bytes(self) -> np.ndarray:
        """Return the number of bytes of text that each id stands for, [vocab_size]."""
        settings = json.loads(self._tokenizer.to_str())
        special = {t["id"] for t in settings.get("added_tokens", []) if t.get("special")}
        byte_level = "ByteLevel" in json.dumps([settings["decoder"], settings["pre_tokenizer"]])
        sizes = np.zeros(self.vocab_size, dtype=np.int64)
        for token, i in self._tokenizer.get_vocab(with_added_tokens=True).items():
            if i in special:
                continue
            if byte_level:  # each character stands for one byte
                sizes[i] = len(token)
            elif len(token) == 6 and token.startswith("<0x"):  # SentencePiece's byte fallback
                sizes[i] = 1
            else:
                sizes[i] = len(token.replace("\u2581", " ").removeprefix("##").encode())
        return sizes

    def identity(self) -> str:
        """Return a text that is equal for tokenizers that give the same ids."""
        settings = f"{self._tokenizer.to_str()}{self.end_id}"
        return f"huggingface-{hashlib.blake2b(settings.encode(), digest_size=16).hexdigest()}"

    def files(self) -> dict[str, str]:
        """Return the content of the files from which transformers makes this tokenizer, by name.

        If a tokenizer_config.json lies beside the file, for example with a chat template, it is one
        of them.
        """
        end = self._tokenizer.id_to_token(self.end_id)
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": end,
            "eos_token": end,
            "clean_up_tokenization_spaces": False,
        }
        beside = Path(self.path).with_name("tokenizer_config.json")
        return {
            "tokenizer.json": Path(self.path).read_text(),
            "tokenizer_config.json": beside.read_text()
            if beside.is_file()
            else json.dumps(settings, indent=2) + "\n",
        }
