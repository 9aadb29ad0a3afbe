"""Tokenizers: round trips, and the bytes that ids stand for."""

import pytest
import tokenizers

from nanigpt.data.tokenizer import ByteTokenizer, HuggingFaceTokenizer
from nanigpt.errors import UsageError

TEXT = "def f(x):\n    return x  # naïve 🐍\n"


def train_bpe(path, *, byte_fallback: bool = False, end: str = "<|endoftext|>", vocab_size=300):
    if byte_fallback:  # as SentencePiece writes it
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=True))
        tokenizer.normalizer = tokenizers.normalizers.Replace(" ", "\u2581")
        tokenizer.decoder = tokenizers.decoders.Sequence(
            [
                tokenizers.decoders.Replace("\u2581", " "),
                tokenizers.decoders.ByteFallback(),
                tokenizers.decoders.Fuse(),
            ]
        )
        special = [end, *(f"<0x{i:02X}>" for i in range(256))]
        trainer = tokenizers.trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special[:1])
        tokenizer.add_tokens(special[1:])
        tokenizer.train_from_iterator(["def return x f : ( ) \n"] * 10, trainer)
    else:
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[end],
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        )
        tokenizer.train_from_iterator([TEXT] * 10, trainer)
    tokenizer.save(str(path))
    return HuggingFaceTokenizer(path=str(path))


def test_bytes_round_trip():
    tokenizer = ByteTokenizer()
    [ids] = tokenizer.encode([TEXT])
    assert ids.tolist() == list(TEXT.encode())
    assert tokenizer.decode([*ids, tokenizer.end_id]) == TEXT
    assert tokenizer.token_bytes()[ids].sum() == len(TEXT.encode())
    assert tokenizer.token_bytes()[tokenizer.end_id] == 0


def test_byte_level_bpe_round_trip_and_bytes(tmp_path):
    tokenizer = train_bpe(tmp_path / "tokenizer.json")
    [ids] = tokenizer.encode([TEXT])
    assert len(ids) < len(TEXT)
    assert tokenizer.decode(ids.tolist()) == TEXT
    assert tokenizer.token_bytes()[ids].sum() == len(TEXT.encode())
    assert tokenizer.token_bytes()[tokenizer.end_id] == 0
    loaded = tokenizers.Tokenizer.from_file(tokenizer.path)
    assert tokenizer.vocab_size == loaded.get_vocab_size()


def test_sentencepiece_style_bytes(tmp_path):
    tokenizer = train_bpe(tmp_path / "tokenizer.json", byte_fallback=True, end="</s>")
    text = "def f(x): return x"
    [ids] = tokenizer.encode([text])
    assert tokenizer.decode(ids.tolist()) == text
    assert tokenizer.token_bytes()[ids].sum() == len(text)


def test_a_missing_file_and_a_wrong_one_are_named(tmp_path):
    with pytest.raises(UsageError, match="path='/nowhere/tokenizer.json': expected a file"):
        _ = HuggingFaceTokenizer(path="/nowhere/tokenizer.json").vocab_size
    wrong = tmp_path / "wrong.json"
    wrong.write_text("{}")
    with pytest.raises(UsageError, match="expected a tokenizer.json of Hugging Face"):
        _ = HuggingFaceTokenizer(path=str(wrong)).vocab_size


def test_settings_for_fixed_lengths_do_not_cut_the_corpus(tmp_path):
    path = tmp_path / "tokenizer.json"
    train_bpe(path)
    stored = tokenizers.Tokenizer.from_file(str(path))
    stored.enable_truncation(4)
    stored.enable_padding(length=8)
    stored.save(str(path))
    tokenizer = HuggingFaceTokenizer(path=str(path))
    ids = tokenizer.encode([TEXT, "x"])
    assert tokenizer.decode(ids[0].tolist()) == TEXT
    assert len(ids[1]) == 1


def test_the_end_token_can_be_named(tmp_path):
    path = tmp_path / "tokenizer.json"
    train_bpe(path, end="<stop>")
    with pytest.raises(UsageError, match="end_token"):
        _ = HuggingFaceTokenizer(path=str(path)).end_id
    assert HuggingFaceTokenizer(path=str(path), end_token="<stop>").end_id == 0
