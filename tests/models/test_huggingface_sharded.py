"""Weights of Hugging Face in models that are spread over ranks; see sharded_huggingface.py, which
runs on each of them."""

import pytest

from nanigpt.models.huggingface.writer import save_pretrained
from tests.models.huggingface import randomize
from tests.support import built_model, succeed, tiny, torchrun

SOURCES = [
    ("llama3_debug", 509),
    ("llama3_debug", 512),
    ("qwen3_debug", 512),
    ("qwen3_moe_debug", 512),
    ("deepseek_v3_debug", 512),
]


@pytest.fixture
def sources(tmp_path):
    """Folders of weights, and the models that they are of, by name."""
    models = {}
    for recipe, size in SOURCES:
        model = built_model(tiny(f"tag:VocabSize={size}", recipe=recipe))
        models[f"{recipe}_{size}"] = randomize(model, seed=4)
        save_pretrained(model, tmp_path / f"{recipe}_{size}")
    return tmp_path, models


def test_two_processes_read_their_shards_and_write_the_same_files(sources):
    folder, models = sources
    succeed(torchrun(2, "-m", "tests.models.sharded_huggingface", str(folder), "fsdp", "ep"))
    written = sorted(folder.glob("*.out"))
    assert [out.stem for out in written] == [
        "deepseek_v3_debug_512.ep",
        "deepseek_v3_debug_512.fsdp",
        "llama3_debug_509.fsdp",
        "qwen3_debug_512.fsdp",
        "qwen3_moe_debug_512.ep",
        "qwen3_moe_debug_512.fsdp",
    ]
    for out in written:
        model = models[out.name.split(".")[0]]
        again = save_pretrained(model, folder / "again", max_shard_bytes=100_000)
        assert len(again) > 5
        assert {file.name: file.read_bytes() for file in again} == {
            file.name: file.read_bytes() for file in out.iterdir()
        }
        (folder / "again").rename(folder / f"{out.stem}.again")


@pytest.mark.parametrize(
    "meshes", [("tp", "pp_tp"), pytest.param(("fsdp", "hsdp", "pp", "ep"), marks=pytest.mark.slow)]
)
def test_four_processes_read_their_parts_under_each_mesh(sources, meshes):
    folder, _ = sources
    succeed(torchrun(4, "-m", "tests.models.sharded_huggingface", str(folder), *meshes))
