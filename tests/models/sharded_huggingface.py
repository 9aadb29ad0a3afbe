"""Run on several ranks by test_huggingface_sharded.py: weights into sharded models, and out again.

Usage: torchrun --nproc-per-node=2 -m tests.models.sharded_huggingface FOLDER fsdp

FOLDER/RECIPE_SIZE has weights for the tiny recipe; FOLDER/RECIPE_SIZE.fsdp.out is written.
"""

import sys
from pathlib import Path

import torch

from nanigpt.config.check.build import build
from nanigpt.models.huggingface import views
from nanigpt.models.huggingface.mapping import weights
from nanigpt.models.huggingface.reader import Pretrained
from nanigpt.models.huggingface.writer import save_pretrained
from nanigpt.parallel.world import start_world, stop_world
from nanigpt.training.setup import set_up_model
from tests.support import built_model, tiny

# Untied, tied with norms of heads, experts, and latents with experts that a bias balances.
RECIPES = {
    "llama3_debug": "tag:VocabSize=509",
    "qwen3_debug": "tag:VocabSize=512",
    "qwen3_moe_debug": "tag:VocabSize=512",
    "deepseek_v3_debug": "tag:VocabSize=512",
}
MESHES = {
    "fsdp": [],
    "hsdp": ["fiddler:hsdp(2)"],
    "tp": ["fiddler:tensor_parallel(2)"],
    "ep": ["fiddler:expert_parallel(2)"],
    "pp": ["fiddler:pipeline(2, '1F1B', 4)"],
    "pp_tp": ["fiddler:pipeline(2, '1F1B', 4)", "fiddler:tensor_parallel(2)"],
}


def main(folder: Path, *meshes: str) -> None:
    world = start_world("cpu")
    for recipe, vocabulary in RECIPES.items():
        for mesh in meshes:
            if mesh == "ep" and recipe in ("llama3_debug", "qwen3_debug"):
                continue
            if "tp" in mesh and vocabulary.endswith("9"):  # a prime number of rows
                vocabulary = "tag:VocabSize=512"
            cfg = tiny(vocabulary, *MESHES[mesh], recipe=recipe)
            source = folder / f"{recipe}_{vocabulary[-3:]}"
            whole = built_model(cfg, seed=1)
            Pretrained(source, whole).load(whole)
            trainer = build(cfg)
            pretrained = Pretrained(source, trainer.model)
            parallel = set_up_model(trainer, world)
            model, sizes = parallel.model, count_elements()
            pretrained.load(model)
            held = sum(getattr(w, "_local_tensor", w).numel() for w in weights(model).values())
            assert sum(sizes) == held, "each rank reads its shards only"
            expected = weights(whole)
            for name, weight in weights(model).items():
                if hasattr(weight, "full_tensor"):
                    weight = weight.full_tensor()
                assert torch.equal(weight, expected[name]), (mesh, name)
            if mesh in ("fsdp", "ep"):
                out = folder / f"{source.name}.{mesh}.out"
                save_pretrained(model, out, max_shard_bytes=100_000, writes=world.is_main)
    stop_world()


def count_elements() -> list[int]:
    """Sizes of what is read from files from now on."""
    sizes = []

    def read(self, region):
        part = self.handle[region]
        sizes.append(part.numel())
        return part

    views.Stored.read = read
    return sizes


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
