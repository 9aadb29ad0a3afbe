"""Tokenizers: text to ids and back, and how many bytes of text each id stands for."""

import hashlib
import json
from pathlib import Path

import numpy as np

from nanigpt.problems import ComponentError, Problem, refuse


class ByteTokenizer:
    """UTF-8 bytes as ids 0 to 255, and 256 for the end of a document. Needs no file."""

    vocab_size = 257
    end_id = 256

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """Ids of each text, without the end of document."""
        return [np.frombuffer(text.encode(), dtype=np.uint8) for text in texts]

    def decode(self, ids: list[int]) -> str:
        return bytes(i for i in ids if i < 256).decode(errors="replace")

    def token_bytes(self) -> np.ndarray:
        """Bytes of text that each id stands for, [vocab_size]."""
        return np.array([1] * 256 + [0])

    def identity(self) -> str:
        """Equal for tokenizers that give the same ids."""
        return "bytes"

    def files(self) -> dict[str, str]:
        """Texts of the files, by name, from which transformers makes this tokenizer: none."""
        return {}


class HuggingFaceTokenizer:
    """A `tokenizer.json` in the format of Hugging Face `tokenizers`.

    Args:
        path: the file.
        end_token: the token that ends a document; None takes the first known of the usual ones.
    """

    _END_TOKENS = ("<|end_of_text|>", "<|endoftext|>", "</s>", "<eos>", "<|im_end|>", "[SEP]")

    def __init__(self, *, path: str, end_token: str | None = None):
        self.path = path
        self.end_token = end_token
        self._loaded = None

    @property
    def _tokenizer(self):
        if self._loaded is None:  # constructing reads no file
            from tokenizers import Tokenizer

            if not Path(self.path).is_file():
                refuse("path", self.path, "a file tokenizer.json", component=self)
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
        """One more than the largest id, added tokens included."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def end_id(self) -> int:
        names = (self.end_token,) if self.end_token is not None else self._END_TOKENS
        for name in names:
            token = self._tokenizer.token_to_id(name)
            if token is not None:
                return token
        expected = f"the end-of-document token of {self.path!r}, which has no {', '.join(names)}"
        refuse("end_token", self.end_token, expected, component=self)

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        encodings = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        return [np.array(e.ids, dtype=np.uint32) for e in encodings]

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids)

    def token_bytes(self) -> np.ndarray:
        settings = json.loads(self._tokenizer.to_str())
        special = {t["id"] for t in settings.get("added_tokens", []) if t.get("special")}
        byte_level = "ByteLevel" in json.dumps([settings["decoder"], settings["pre_tokenizer"]])
        sizes = np.zeros(self.vocab_size, dtype=np.int64)
        for token, i in self._tokenizer.get_vocab(with_added_tokens=True).items():
            if i in special:
                continue
            if byte_level:  # its alphabet writes each byte as one character
                sizes[i] = len(token)
            elif len(token) == 6 and token.startswith("<0x"):  # SentencePiece's byte fallback
                sizes[i] = 1
            else:
                sizes[i] = len(token.replace("\u2581", " ").removeprefix("##").encode())
        return sizes

    def identity(self) -> str:
        settings = f"{self._tokenizer.to_str()}{self.end_id}"
        return f"huggingface-{hashlib.blake2b(settings.encode(), digest_size=16).hexdigest()}"

    def files(self) -> dict[str, str]:
        """Texts of the files, by name, from which transformers makes this tokenizer.

        A tokenizer_config.json that lies beside the file, with a chat template say, goes along.
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
