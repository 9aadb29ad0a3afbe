"""Sizes that do not fit are told by the names that the modules themselves have for them."""

import fiddle as fdl
import pytest
from torch import nn

from nanigpt.config.check.build import build
from nanigpt.errors import UsageError
from nanigpt.models.widths import declared_sizes, misfits, own_name, size
from tests.support import tiny


def test_a_size_has_the_name_of_its_module():
    norm, linear = nn.LayerNorm(8), nn.Linear(8, 4)
    assert (own_name(norm, "dim"), size(norm, "dim")) == ("normalized_shape", 8)
    assert (own_name(linear, "out_dim"), size(linear, "out_dim")) == ("out_features", 4)
    assert (own_name(nn.Identity(), "dim"), size(nn.Identity(), "dim")) == ("dim", None)
    assert declared_sizes({"a.dim": norm, "b.dim": nn.Identity()}) == {"a.normalized_shape": 8}


def test_a_misfit_says_sizes_and_reasons_by_their_own_names():
    wide, narrow = nn.Linear(8, 16), nn.Linear(8, 4)
    [problem] = misfits({"w2.in_dim": (narrow, 16), "w3.in_dim": (narrow, 8)}, {"w1.out_dim": wide})
    assert (
        str(problem)
        == "w2.in_features=8: expected 16 for w1.out_features=16; try w2.in_features=16"
    )
    assert problem.given == ("w1.out_features",)


@pytest.mark.parametrize(
    "place, module, message",
    [
        ("norm", fdl.Config(nn.LayerNorm, 64), "model.norm.normalized_shape=64: expected 128"),
        ("head", fdl.Config(nn.Linear, 64, 256, bias=False),
         "model.head.in_features=64: expected 128"),
        ("layers[0].attention_norm", fdl.Config(nn.RMSNorm, 64),
         "model.layers[0].attention_norm.normalized_shape=64: expected 128"),
        ("layers[0].feed_forward.w3", fdl.Config(nn.Linear, 64, 384),
         "model.layers[0].feed_forward.w3.in_features=64: expected 128"),
        ("layers[0].attention.q_norm", fdl.Config(nn.LayerNorm, 64),
         "model.layers[0].attention.q_norm.normalized_shape=64: expected 8"),
    ],
)  # fmt: skip
def test_the_flag_that_mends_a_plain_module_sets_its_own_argument(place, module, message):
    cfg = tiny()
    holder, _, name = place.rpartition(".")
    setattr(eval(f"cfg.model.{holder}" if holder else "cfg.model"), name, module)
    with pytest.raises(UsageError) as raised:
        build(cfg)
    text = str(raised.value)
    assert message in text
    where = message.partition("=")[0]
    assert f"--config=set:{where}=" in text
