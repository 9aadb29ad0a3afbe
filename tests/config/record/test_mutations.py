"""A damaged record is refused by a message, or is a config that is written and read back equal."""

import copy
import functools
import json
import random
from pathlib import Path

import fiddle as fdl
import pytest

from nanigpt.config.check.static import problems
from nanigpt.config.record import names
from nanigpt.config.record.file import dump, load
from nanigpt.config.record.fingerprint import fingerprint
from nanigpt.config.view.show import render
from nanigpt.errors import UsageError
from tests.config.components import Anything, Part, Point, Rate, pair, whole
from tests.support import tiny

OLD = Path(__file__).parents[2] / "fixtures/runs/bfloat16/config.json"
_MARKS = ("@", "@partial", "@same", "@shared", "@times", "@args", "@tags", "@tuple", "@name")
_MARKS += ("@dict", "@set", "@float", "@int", "@slice", "@device", "@functools.partial", "@of")


@pytest.fixture(autouse=True)
def tests_allowed(monkeypatch):
    known = names.extension_packages()
    monkeypatch.setattr(names, "extension_packages", lambda: known | {"tests"})


def varied() -> fdl.Buildable:
    """A config with each form that a record has."""
    cfg, shared = whole(), [1]
    cfg.parts += [fdl.Config(Part), fdl.Config(Part), fdl.Partial(Part, size=2)]
    cfg.table = {1: 2, "b": [shared, shared], "c": {"d": {1, 2}}}
    cfg.pair = (float("inf"), 2**70, 1j, b"x", slice(1, 2), Point(1, 2), frozenset({3}))
    once = [5]
    cfg.names = [
        functools.partial(pair, once, b=[once]),
        Anything.made,
        fdl.Config(pair, 1),
        fdl.TaggedValue(tags=[Rate], default=1),
    ]
    return cfg


def places(value):
    for key in value if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], (dict, list)):
            yield from places(value[key])


def mutated(record, rng: random.Random):
    """A copy in which one to three places are missing, or hold something else."""
    record = copy.deepcopy(record)
    for _ in range(rng.randint(1, 3)):
        found = list(places(record))
        if not found:
            break
        holder, key = rng.choice(found)
        other, other_key = rng.choice(found)
        verb = rng.choice(["delete", "replace", "copy", "rename", "wrap", "add"])
        if verb == "delete":
            del holder[key]
        elif verb == "copy":
            holder[key] = copy.deepcopy(other[other_key])
        elif verb == "rename" and isinstance(holder, dict):
            holder[rng.choice([*_MARKS, "zz", ""])] = holder.pop(key)
        elif verb == "wrap":
            holder[key] = {rng.choice(_MARKS): holder[key]}
        elif verb == "add" and isinstance(holder[key], dict):
            holder[key][rng.choice(_MARKS)] = rng.choice([1, "rope", "parts", [], {}])
        else:
            wrong = (
                None,
                True,
                7,
                -1,
                10**400,
                0.5,
                "",
                "zz",
                "os:system",
                [1],
                [[1, 2]],
                {"a": 1},
            )
            holder[key] = rng.choice(wrong)
    return record


def check_mutations(record, path: Path, seeds: range) -> tuple[int, int]:
    """Return how many mutations were refused, and how many were read."""
    refused = 0
    for seed in seeds:
        path.write_text(json.dumps(mutated(record, random.Random(seed))))
        try:
            loaded = load(path)
        except UsageError as error:
            assert str(path) in str(error)
            refused += 1
            continue
        render(loaded)
        problems(loaded)
        text = dump(loaded)
        path.write_text(text)
        again = load(path)
        assert fingerprint(again) == fingerprint(loaded)
        assert dump(again) == text
    return refused, len(seeds) - refused


MADE = {"varied": lambda: dump(varied()), "recipe": lambda: dump(tiny()), "old": OLD.read_text}


@pytest.mark.parametrize("name, some", [("varied", 1700), ("recipe", 250), ("old", 50)])
def test_some_mutations(name, some, tmp_path):
    record = json.loads(MADE[name]())
    refused, read = check_mutations(record, tmp_path / "config.json", range(some))
    assert refused > some / 5 and read > some / 50


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
@pytest.mark.parametrize("name, each", [("varied", 850), ("recipe", 125), ("old", 25)])
def test_mutations(name, each, part, tmp_path):
    seeds = range(10_000 + part * each, 10_000 + (part + 1) * each)
    check_mutations(json.loads(MADE[name]()), tmp_path / "config.json", seeds)
