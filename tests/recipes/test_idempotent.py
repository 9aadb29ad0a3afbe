"""A fiddler that is applied twice gives what once gives, or refuses."""

import math

import fiddle as fdl
import pytest
from torch import nn

from nanigpt.config.check.build import build
from nanigpt.config.compose.flag import compose
from nanigpt.config.record.fingerprint import fingerprint
from nanigpt.config.registry import fiddlers, recipes
from nanigpt.errors import UsageError
from nanigpt.models.self_attention import SelfAttention
from tests.support import SOON

CALLS = {
    "compile": "compile",
    "context": "context(64)",
    "context_parallel": "context_parallel(2, ring)",
    "debug_scale": "debug_scale",
    "depth": "depth(4)",
    "expert_parallel": "expert_parallel(2)",
    "float8": "float8",
    "fsdp": "fsdp(4)",
    "hsdp": "hsdp(2)",
    "memory_snapshot": "memory_snapshot",
    "multi_token": "multi_token",
    "muon": "muon",
    "optimizer_state": "optimizer_state(bfloat16)",
    "parameter_group": "parameter_group(embedding, lr=1e-4)",
    "phase_timers": "phase_timers",
    "pipeline": "pipeline(4, GPipe, 16)",
    "profile": "profile",
    "steps": "steps(10)",
    "tensor_parallel": "tensor_parallel(2)",
    "tensorboard": "tensorboard(False)",
    "vocabulary": "vocabulary(1000)",
    "wandb": "wandb(project=mine)",
}


def test_the_table_has_every_fiddler():
    assert set(CALLS) == set(fiddlers())


def _marks(name):
    return [] if name in SOON or name.endswith(("_debug", "_on_512")) else [pytest.mark.slow]


@pytest.mark.parametrize("recipe", [pytest.param(n, marks=_marks(n)) for n in recipes()])
def test_twice_gives_what_once_gives(recipe):
    for call in CALLS.values():
        once = compose([f"config:{recipe}", f"fiddler:{call}"])
        expected = fingerprint(once)
        try:
            compose([f"fiddler:{call}"], once)
        except UsageError as error:
            assert "already" in str(error), call  # multi_token and muon
        assert fingerprint(once) == expected, call


def test_a_pipeline_keeps_the_size_of_a_microbatch():
    base = ["config:llama3_8b", "tag:LocalBatchSize=2"]
    cfg = compose([*base, "fiddler:pipeline(4, GPipe, 8)"])
    assert cfg.local_batch_size == 16
    compose(["fiddler:pipeline(4, ZBVZeroBubble, 8)"], cfg)
    assert cfg.local_batch_size == 16
    compose(["fiddler:pipeline(4, ZBVZeroBubble, 4)"], cfg)
    assert cfg.local_batch_size == 8
    # It has 32 microbatches of one sequence each.
    cfg = compose(["config:llama3_405b_on_512", "fiddler:pipeline(8, GPipe, 16)"])
    assert cfg.local_batch_size == 16
    with pytest.raises(UsageError, match="no multiple of the run's microbatches=3"):
        three = ("fiddler:pipeline(2)", "set:parallelizer.pipeline.microbatches=3")
        compose([*base, *three, "fiddler:pipeline(2, GPipe, 4)"])
    with pytest.raises(UsageError, match="expected at least 2 ranks"):
        compose([*base, "fiddler:pipeline(1, GPipe, 4)"])


def test_the_last_number_of_steps_counts():
    direct = compose(["config:llama3_8b", "fiddler:steps(1000)"])
    by_way = compose(["config:llama3_8b", *(f"fiddler:steps({n})" for n in (50, 10, 1000))])
    assert fingerprint(by_way) == fingerprint(direct)
    assert build(direct).schedule.warmup(1000) == 20


@pytest.mark.parametrize(("warmup", "steps"), [(2000, 100_000), (20, 700), (20, 600), (7, 30)])
def test_a_fraction_of_the_steps_is_as_many_as_the_product_of_whole_numbers(warmup, steps):
    schedule = build(compose(["config:llama3_debug"]).schedule)
    schedule.warmup_steps = warmup / steps
    for n in range(1, 3000):
        assert schedule.warmup(n) == math.floor(warmup * n / steps + 1e-9) == warmup * n // steps


def test_a_schedule_without_a_warm_up_is_left_alone():
    cfg = compose(["config:llama3_debug"])
    cfg.schedule = constant_rate
    assert compose(["fiddler:steps(5)"], cfg).steps == 5


def test_a_parameter_group_replaces_the_one_that_selects_the_same():
    calls = ("embedding, lr=1.0", "head, lr=2.0", "embedding, lr=3.0")
    cfg = compose(["config:llama3_debug", *(f"fiddler:parameter_group({c})" for c in calls)])
    assert [(g.select, g.lr) for g in cfg.optimizer.groups] == [("embedding", 3.0), ("head", 2.0)]


def test_debug_scale_takes_attention_without_a_window():
    cfg = compose(["config:llama3_debug"])
    for layer in cfg.model.layers:
        layer.attention = fdl.Config(Windowless, inner=layer.attention.wo)
    small = compose(["fiddler:debug_scale"], cfg)
    assert len(small.model.layers) == 2


def constant_rate(step: int, steps: int) -> float:
    return 1.0


class Windowless(SelfAttention):
    def __init__(self, *, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def stream_dims(self):
        return {}

    def cache_elements(self):
        return 0

    def forward(self, x_BLD, cache=None, places=None):
        return self.inner(x_BLD)
