"""What of a run may change when it resumes, as its components declare."""

from fnmatch import fnmatchcase

import fiddle as fdl
import pytest

from nanigpt import tags
from nanigpt.config.compose.flag import compose
from nanigpt.config.flatten import leaves
from nanigpt.config.paths import parse_path
from nanigpt.config.record import names
from nanigpt.config.record.run_config import claim_run, load_run, may_change_on_resume
from nanigpt.errors import UsageError
from tests.config.components import Anything, Part
from tests.support import each_recipe

MAY_CHANGE = (
    *("metrics", "profiling", "loader", "garbage_collection", "task.sampler", "evaluations"),
    *("trackers", "checkpointer", "device", "local_batch_size"),
    *(f"parallelizer.{name}" for name in ("mesh", "pipeline", "context", "tensor", "expert")),
    *("parallelizer.compile", "parallelizer.recomputation"),
    "model.*.activation_checkpointing",
)


def listed(path):
    below = tuple(f"{known}{mark}" for known in MAY_CHANGE for mark in ".[")
    return path.startswith(below) or any(fnmatchcase(path, known) for known in MAY_CHANGE)


@pytest.mark.parametrize("recipe", each_recipe())
def test_components_declare_what_a_resumed_run_may_change(recipe):
    cfg = compose([f"config:{recipe}", "fiddler:compile"])
    paths = [path for path, _ in leaves(cfg) if path]
    assert [p for p in paths if may_change_on_resume(cfg, tuple(parse_path(p)))] == [
        path for path in paths if listed(path)
    ]


def test_tags_are_set_where_a_recorded_config_has_them(tmp_path):
    cfg = compose(["config:llama3_debug"])
    claim_run(tmp_path / "config.json", cfg, started=False, allow_config_change=False)
    changed = load_run(str(tmp_path), tags={tags.Seed: 3, tags.BalanceRate: 0.1})  # no router
    assert changed.seed == 3


class Quiet:
    may_change_on_resume = ("volume",)

    def __init__(self, *, volume: int = 1, pitch: int = 2):
        pass


class Silent:
    may_change_on_resume = True

    def __init__(self, *, part: Part | None = None):
        pass


def holds(value):
    return fdl.Config(Anything, a=value)


def resumed(tmp_path, old, new):
    path = tmp_path / "config.json"
    path.unlink(missing_ok=True)
    claim_run(path, holds(old), started=False)
    return claim_run(path, holds(new), started=True)


def test_a_component_of_ones_own_declares_what_may_change(tmp_path, monkeypatch):
    known = names.extension_packages()
    monkeypatch.setattr(names, "extension_packages", lambda: known | {"tests"})
    quiet, loud = fdl.Config(Quiet), fdl.Config(Quiet, volume=5)
    assert resumed(tmp_path, quiet, loud) == ["a.volume: 1 -> 5"]
    with pytest.raises(UsageError, match=r"a.pitch: 2 -> 5 \(allowed would be: a.volume"):
        resumed(tmp_path, quiet, fdl.Config(Quiet, volume=5, pitch=5))
    silent = fdl.Config(Silent, part=fdl.Config(Part))
    other = fdl.Config(Silent, part=fdl.Config(Part, size=8))
    assert resumed(tmp_path, silent, other) == ["a.part.size: 3 -> 8"]
    assert resumed(tmp_path, None, silent) == ["a: None -> Silent"]
    assert resumed(tmp_path, silent, None) == ["a: Silent -> None"]
    with pytest.raises(UsageError, match="a: None -> Part"):
        resumed(tmp_path, None, fdl.Config(Part))
