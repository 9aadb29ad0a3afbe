"""Reading files, and holding some of them out."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from nanigpt.data.corpus import TextCorpus
from nanigpt.errors import UsageError


def split(corpus):
    sides = {"train": [], "validation": []}
    for side, text in corpus.documents():
        sides[side].append(text)
    return sides


def test_the_default_is_the_standard_library():
    sides = split(TextCorpus())
    total = sum(len(t) for texts in sides.values() for t in texts)
    assert 5e6 < total < 5e7
    assert 0.01 < len(sides["validation"]) / len(sides["train"]) < 0.12
    assert not set(sides["train"]) & set(sides["validation"])
    assert any("def namedtuple(" in t for texts in sides.values() for t in texts)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_rows_are_documents(tmp_path, kind):
    texts = [f"document {i} says ünïcode\n" for i in range(2000)]
    path = tmp_path / f"rows.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps({"content": t, "id": 1}) + "\n" for t in texts))
    else:
        pyarrow.parquet.write_table(pyarrow.table({"content": texts}), path)
    sides = split(TextCorpus(path=str(path), text_field="content"))
    assert sorted(sides["train"] + sides["validation"]) == sorted(texts)
    assert 60 < len(sides["validation"]) < 140  # 5% of 2000, by hash
    with pytest.raises(
        UsageError, match="text_field='text': expected a column with text .*, (one of )?content"
    ):
        split(TextCorpus(path=str(path)))


def test_one_text_file_is_cut_into_blocks_of_lines(text_file):
    sides = split(TextCorpus(path=str(text_file), validation_fraction=0.1))
    assert 5 <= len(sides["validation"]) <= 15
    assert all(text.endswith("\n") for text in sides["train"])
    assert sum(len(t) for s in sides.values() for t in s) == len(text_file.read_text())


def test_many_files_by_glob_or_folder(tmp_path):
    for i in range(150):
        (tmp_path / f"{i}.txt").write_text(f"text number {i}\n" * 3)
    by_glob = split(TextCorpus(path=str(tmp_path / "*.txt")))
    assert sum(map(len, by_glob.values())) == 150
    assert by_glob == split(TextCorpus(path=str(tmp_path)))
    fewer = split(TextCorpus(path=str(tmp_path / "1*.txt")))
    assert set(fewer["validation"])  # never empty, however few


def test_names_with_brackets_and_line_ends_are_kept(tmp_path):
    rows = tmp_path / "r[1].jsonl"
    rows.write_text('{"text": "one"}\n{"text": "two"}\n')
    assert sum(map(len, split(TextCorpus(path=str(rows))).values())) == 2
    dos = tmp_path / "dos.txt"
    dos.write_bytes(b"a line\r\nanother\r\n" * 50)
    sides = split(TextCorpus(path=str(dos)))
    assert sum(len(t) for texts in sides.values() for t in texts) == dos.stat().st_size


def test_equal_texts_go_to_the_same_side(tmp_path):
    for i in range(300):
        (tmp_path / f"{i}.txt").write_text(f"text number {i % 30}\n")
    sides = split(TextCorpus(path=str(tmp_path), validation_fraction=0.3))
    assert sides["validation"]
    assert not set(sides["train"]) & set(sides["validation"])


def test_identity_changes_with_the_files(text_file):
    corpus = TextCorpus(path=str(text_file))
    before = corpus.identity()
    assert before == TextCorpus(path=str(text_file)).identity()
    text_file.write_text("other text\n")
    assert corpus.identity() != before


def test_mistakes_are_named(tmp_path):
    with pytest.raises(
        UsageError, match=r"path='/nowhere/\*.txt': expected a file, a folder or a glob"
    ):
        split(TextCorpus(path="/nowhere/*.txt"))
    empty = tmp_path / "empty.txt"
    empty.touch()
    with pytest.raises(UsageError, match="expected files that hold text"):
        split(TextCorpus(path=str(empty)))
    empty_rows = tmp_path / "empty.jsonl"
    empty_rows.touch()
    with pytest.raises(UsageError, match="expected files that hold text"):
        split(TextCorpus(path=str(empty_rows)))
    latin = tmp_path / "latin.txt"
    latin.write_bytes("naïve".encode("latin-1"))
    with pytest.raises(UsageError, match=r"latin.txt is not UTF-8 text"):
        split(TextCorpus(path=str(latin)))
    fake = tmp_path / "fake.parquet"
    fake.write_text("not parquet")
    with pytest.raises(UsageError, match=r"fake.parquet cannot be read as parquet"):
        split(TextCorpus(path=str(fake)))
    with pytest.raises(UsageError, match="path=.*: expected a file, a folder or a glob"):
        split(TextCorpus(path=""))
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "fine"}\n{"text": \n')
    with pytest.raises(UsageError, match=r"broken.jsonl cannot be read as json"):
        split(TextCorpus(path=str(broken)))
