"""Equal where the run is, different where anything is."""

import os
import subprocess
import sys

import fiddle as fdl
import pytest
import torch

from nanigpt.config.fingerprint import fingerprint
from nanigpt.config.flag import compose
from nanigpt.config.record import dump, load
from nanigpt.config.registry import recipes
from nanigpt.errors import UsageError
from nanigpt.models.init import Constant
from tests.config.components import Part, Rate, Whole, whole
from tests.support import tiny


def test_how_a_config_is_written_does_not_matter():
    plain = fdl.Config(Whole, name="n", parts=[], table={"a": 1, "b": 2})
    spelled = fdl.Config(Whole, table={"b": 2, "a": 1}, count=1, limit=None, parts=[], name="n")
    assert fingerprint(plain) == fingerprint(spelled)
    part = fdl.Config(Part, rate=1)
    assert fingerprint(part) == fingerprint(fdl.Config(Part, rate=1.0, size=3))
    tagged = fdl.Config(Part, rate=1)
    fdl.remove_tag(tagged, "rate", Rate)
    assert fingerprint(part) == fingerprint(tagged)


@pytest.mark.parametrize(
    "edit",
    [
        lambda cfg: setattr(cfg, "name", "v"),
        lambda cfg: setattr(cfg, "count", 2),
        lambda cfg: setattr(cfg, "exact", True),
        lambda cfg: setattr(cfg, "count", True),
        lambda cfg: setattr(cfg, "limit", 0),
        lambda cfg: setattr(cfg, "path", "None"),
        lambda cfg: setattr(cfg, "dtype", torch.bfloat16),
        lambda cfg: setattr(cfg, "pair", [0.9, 0.95]),
        lambda cfg: setattr(cfg, "pair", (0.95, 0.9)),
        lambda cfg: setattr(cfg.parts[1], "rate", 0.5000000001),
        lambda cfg: cfg.parts.__setitem__(2, fdl.Config(Part)),  # equal, no longer shared
        lambda cfg: cfg.parts.__setitem__(1, cfg.parts[0]),  # equal, now shared
        lambda cfg: cfg.parts.__setitem__(1, fdl.Partial(Part)),
        lambda cfg: cfg.table.update(b=1),
        lambda cfg: cfg.table.update(a=2),
    ],
)
def test_any_change_of_what_is_built_matters(edit):
    cfg = whole()
    edit(cfg)
    assert fingerprint(cfg) != fingerprint(whole())


def test_recipes_differ_and_their_records_do_not(tmp_path):
    prints = {}
    for name in recipes():
        cfg = compose([f"config:{name}"])
        prints[name] = fingerprint(cfg)
        (tmp_path / name).write_text(dump(cfg))
        assert fingerprint(load(tmp_path / name)) == prints[name]
    assert len(set(prints.values())) == len(prints)


def test_other_processes_agree():
    code = """
from nanigpt.config.fingerprint import fingerprint
from tests.config.components import whole
from tests.support import tiny
print(fingerprint(whole()), fingerprint(tiny()))
"""
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert done.stdout.split() == [fingerprint(whole()), fingerprint(tiny())]


def test_what_has_no_content_is_named_with_its_path():
    cfg = whole()
    cfg.parts[1].rate = lambda: 0
    with pytest.raises(
        UsageError, match=r"parts\[1\].rate: a lambda \(test_fingerprint.py:\d+\) has no name"
    ):
        fingerprint(cfg)
    cfg.parts[1].rate = Constant(value=1.0)
    with pytest.raises(UsageError, match=r"parts\[1\].rate: .* has no content to compare"):
        fingerprint(cfg)
