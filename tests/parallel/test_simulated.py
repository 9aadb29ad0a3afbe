"""A world of 512 ranks that are not there: what rank 0 would hold of llama3_70b."""

import json
import math

from nanigpt.config.build import build
from nanigpt.config.flag import compose
from tests.support import finish, start, succeed


def test_512_ranks_shard_70b_on_a_cpu(tmp_path):
    report = tmp_path / "report.json"
    succeed(finish(start("-m", "tests.parallel.simulated", str(report)), timeout=120))
    told = json.loads(report.read_text())
    assert told["layout"] == "dp_replicate=2, dp_shard=32, tp=8"
    whole = dict(build(compose(["config:llama3_70b"])).model.named_parameters())
    assert set(told["shards"]) == set(whole)
    for name, shard in told["shards"].items():
        assert shard["shape"] == list(whole[name].shape)
        assert shard["device"] == "meta"
        parts = 32 if "norm" in name else 32 * 8  # norms are not split by tensor parallelism
        assert math.prod(shard["local"]) * parts == whole[name].numel(), (name, shard)
