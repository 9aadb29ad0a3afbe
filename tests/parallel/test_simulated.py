"""Worlds of hundreds of ranks that are not there: what a rank would hold."""

import math
import re

import pytest

from nanigpt.config.check.build import build
from nanigpt.config.compose.flag import compose
from nanigpt.parallel.simulate import shards
from tests.support import flags, nanigpt, succeed


def sharded(directives, *, ranks, rank):
    trainer = build(compose(directives))
    trainer.check(ranks)
    return shards(
        trainer.parallelizer,
        trainer.model,
        ranks=ranks,
        rank=rank,
        local_batch=trainer.local_batch(ranks),
    )


@pytest.mark.parametrize("rank", [0, 511])
def test_512_ranks_shard_70b_on_a_cpu(rank):
    directives = ["config:llama3_70b", "fiddler:hsdp(2)", "fiddler:tensor_parallel(8)"]
    found = sharded(directives, ranks=512, rank=rank)
    whole = dict(build(compose(["config:llama3_70b"])).model.named_parameters())
    assert {shard.name for shard in found} == set(whole)
    for shard in found:
        assert shard.shape == whole[shard.name].shape
        parts = 32 if "norm" in shard.name else 32 * 8  # tensor parallelism does not split norms
        assert math.prod(shard.local) * parts == whole[shard.name].numel(), shard


def test_the_ranks_of_a_pipeline_have_everything_once():
    """Four pipeline ranks, each of two stages and of 16 ranks; a line of them has every layer."""
    directives = ["config:llama3_8b", "fiddler:pipeline(4, 'Interleaved1F1B', 8)"]
    directives += ["fiddler:tensor_parallel(8)", "tag:GlobalBatchSize=512"]
    whole = {n for n, _ in build(compose(["config:llama3_8b"])).model.named_parameters()}
    names = []
    for rank in range(0, 64, 16):
        names += [shard.name for shard in sharded(directives, ranks=64, rank=rank)]
    assert len(names) == len(set(names)) and set(names) == whole


def test_experts_are_divided_over_three_axes():
    """Of 128 experts each of 8 ranks has 16, which 4 others shard; 2 have their hidden features."""
    directives = ["config:qwen3_30b_a3b", "fiddler:expert_parallel(8)"]
    found = {
        shard.name: shard
        for shard in sharded([*directives, "fiddler:tensor_parallel(2)"], ranks=64, rank=37)
    }
    prefix = "layers.5.feed_forward"
    assert found[f"{prefix}.experts.w1"].local == (4, 768 // 2, 2048)
    assert found[f"{prefix}.experts.w2"].local == (4, 2048, 768 // 2)
    assert found[f"{prefix}.router.weight"].local == (4, 2048)
    # More ranks than experts shard their features, rather than leave ranks without any.
    directives[1] = "fiddler:expert_parallel(2)"
    wide = {shard.name: shard for shard in sharded(directives, ranks=512, rank=77)}
    assert wide[f"{prefix}.experts.w1"].local == (64, 768 // 256, 2048)


def test_the_command_reports_shards():
    arguments = ["shards", *flags("config:llama3_70b_on_256"), "--ranks=256", "--rank=3"]
    out = succeed(nanigpt(*arguments))
    wq = next(line for line in out.splitlines() if line.startswith("layers.*.attention.wq.weight"))
    assert re.search(r" 8192 x 8192 +32 x 8192 +fsdp: dim 0, tp: dim 0 +x80$", wq)
    assert "275,636,480 of 70,553,706,496 parameters, 0.391%" in out
    assert nanigpt(*arguments[:-1], "--rank=256").returncode == 2
