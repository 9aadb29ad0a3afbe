"""Numbers that no run can train with are refused before it begins."""

import math

import fiddle as fdl
import pytest

from nanigpt.cli.trainer import checked_trainer
from nanigpt.config.compose.flag import compose
from nanigpt.config.paths import arguments
from nanigpt.config.sharing import nodes
from nanigpt.errors import UsageError

CONFIGS = [
    ["config:llama3_debug", "set:schedule=@warmup_stable_decay"],
    ["config:llama3_debug", "fiddler:muon", "fiddler:multi_token"],
    ["config:gpt_oss_debug"],
    ["config:llama4_debug"],
    ["config:deepseek_v3_debug"],
]
ENDLESS = {("Trainer", "max_grad_norm")}  # never scales gradients down


@pytest.mark.parametrize("directives", CONFIGS, ids=" ".join)
def test_every_float_must_be_a_finite_number(directives):
    cfg = compose(directives)
    met = set()
    for node in list(nodes(cfg)):
        for name, value in arguments(node).items():
            key = (fdl.get_callable(node).__name__, name)
            if type(value) is not float or key in met:
                continue
            met.add(key)
            given = node.__arguments__.get(name, fdl.NO_VALUE)
            for wrong in (math.nan, math.inf):
                setattr(node, name, wrong)
                if wrong == math.inf and key in ENDLESS:
                    checked_trainer(cfg)
                    continue
                with pytest.raises(UsageError) as caught:
                    checked_trainer(cfg)
                assert f"{name}={wrong}: expected " in str(caught.value), key
            if given is fdl.NO_VALUE:
                delattr(node, name)
            else:
                setattr(node, name, given)
    assert len(met) > 8


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        ("optimizer.eps=0", "optimizer.eps=0.0: expected more than 0"),
        ("seed=-1", "seed=-1: expected 0 to 2**63 - 1"),
        ("seed=12345678901234567890123456", "expected 0 to 2**63 - 1"),
        ("task.sampler.seed=-3", "task.sampler.seed=-3: expected 0 to 2**63 - 1"),
    ],
)
def test_values_out_of_range(edit, expected):
    with pytest.raises(UsageError) as caught:
        checked_trainer(compose(["config:llama3_debug", f"set:{edit}"]))
    assert expected in str(caught.value)
