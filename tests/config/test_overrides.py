"""`set:` by path, typed by annotation."""

import fiddle as fdl
import pytest
import torch

from nanigpt.config.overrides import apply_override, apply_tag
from nanigpt.errors import UsageError
from tests.config.components import Color, Owner, Whole, whole


@pytest.mark.parametrize(
    "assignment, expected",
    [
        ("count=40", 40),
        ("count=1e3", 1000),
        ("name=bare text", "bare text"),
        ("name=123", "123"),
        ("name='quoted'", "quoted"),
        ("path=/a/*.txt", "/a/*.txt"),
        ("path=None", None),
        ("path=none", None),
        ("exact=true", True),
        ("exact=False", False),
        ("limit=7", 7),
        ("limit=None", None),
        ("dtype=bf16", torch.bfloat16),
        ("dtype=torch.float32", torch.float32),
        ("parts[1].size=9", 9),
        ("parts[-2].rate=1", 1.0),
        ("parts[0].rate=1e-4", 1e-4),
        ("pair=(0.8, 0.9)", (0.8, 0.9)),
        ("table['a']=5", 5),
        ("name=a=b", "a=b"),
        ("mode=slow", "slow"),
        ("parts=[]", []),
        ("pair=[0.8, 1]", (0.8, 1.0)),
        ("pair[1]=0.99", (0.9, 0.99)),
        ("table={'x': 2**3, y: 1e3}", {"x": 8, "y": 1000}),
        ("table['b']=2", {"a": 1, "b": 2}),
        ("color=red", Color.RED),
        ("color=Color.BLUE", Color.BLUE),
        ("color=1", Color.RED),
        ("names=[a, 'b c', 3]", ["a", "b c", "3"]),
    ],
)
def test_values(assignment, expected):
    cfg = whole()
    apply_override(cfg, assignment)
    path = assignment.partition("=")[0]
    if not isinstance(expected, (tuple, dict)):
        value = eval(f"cfg.{path}", {"cfg": cfg})
    else:  # given whole, or by one element
        value = getattr(cfg, path.partition("[")[0])
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    "assignment, message",
    [
        ("count=hello", "count=hello: expected int, not str"),
        ("count=1.5", "count=1.5: expected int, not float"),
        ("exact=1", "exact=1: expected bool, not int"),
        ("limit=x", "limit=x: expected int or None, not str"),
        ("dtype=bf17", "expected dtype, not 'bf17' \\(one of float64"),
        ("cuont=3", r"the config \(Whole\) has no 'cuont'; did you mean 'count'\?"),
        ("parts[1].sise=3", r"parts\[1\] \(Part\) has no 'sise'; did you mean 'size'\?"),
        ("parts[3].size=3", r"parts has 3 elements: expected an index from -3 to 2, not 3"),
        ("count.x=3", "count is 1: it has no 'x'"),
        ("name.x=3", "name is 'w': it has no 'x'"),
        ("count", "expected PATH=VALUE"),
        ("parts[0]=7", r"parts\[0\]=7: expected Part, not int; set its arguments one by one"),
        ("parts=7", r"parts=7: expected list\[Part\], not int"),
        ("pair=0.9", r"pair=0.9: expected tuple\[float, float\], not float"),
        ("mode=medium", "expected one of 'fast', 'slow', not 'medium'"),
        ("table['a']=x", "expected int, not str"),
        ("table['c'].x=1", "table has no key 'c'; known: a"),
        ("table={'a': x}", r"\['a'\]=x: expected int, not str"),
        ("pair=(0.9, x)", r"\[1\]=x: expected float, not str"),
        ("pair=(0.9,)", "expected 2 elements, not 1"),
        ("color=green", "expected one of RED, BLUE or None, not 'green'"),
        ("rate=1", r"the config \(Whole\) has no 'rate'; there is parts\[0\].rate \(and 1 more\)"),
        ("a..b=1", "is not a path"),
        ("__fn_or_cls__.__init__=1", "__fn_or_cls__ is not an argument"),
        ("parts[0].__fn_or_cls__=1", "__fn_or_cls__ is not an argument"),
    ],
)
def test_mistakes_are_named_and_change_nothing(assignment, message):
    cfg = whole()
    with pytest.raises(UsageError, match=message):
        apply_override(cfg, assignment)
    assert cfg == whole()


@pytest.mark.parametrize(
    "path, sizes",
    [
        ("parts[*].size", [9, 9, 9]),
        ("parts[1:].size", [9, 9, 9]),  # the last node is the first one, shared
        ("parts[1:2].size", [3, 9, 3]),
        ("parts[::2].size", [9, 3, 9]),
        ("parts[-2:-1].size", [3, 9, 3]),
    ],
)
def test_globs(path, sizes):
    cfg = whole()
    apply_override(cfg, f"{path}=9")
    assert [part.size for part in fdl.build(cfg).parts] == sizes


def test_a_glob_that_fails_somewhere_sets_nothing():
    cfg = whole()
    with pytest.raises(UsageError, match=r"parts\[5:\] matches none of 3 elements"):
        apply_override(cfg, "parts[5:].size=9")
    with pytest.raises(UsageError, match="name is 'w', not a list"):
        apply_override(cfg, "name[*].size=9")
    cfg.parts[1].size = fdl.Config(whole)
    before = [part.size for part in cfg.parts]
    with pytest.raises(UsageError, match=r"parts\[0\].size is 3: it has no 'count'"):
        apply_override(cfg, "parts[*].size.count=9")
    assert [part.size for part in cfg.parts] == before


def test_tags():
    cfg = whole()
    apply_tag(cfg, "Rate=2e-1")
    assert [part.rate for part in cfg.parts] == [0.2, 0.2, 0.2]
    with pytest.raises(
        UsageError, match="no argument of this config has the tag 'Rat'; did you mean 'Rate'"
    ):
        apply_tag(cfg, "Rat=1")
    with pytest.raises(UsageError, match=r"parts\[0\].rate=fast: expected float, not str"):
        apply_tag(cfg, "Rate=fast")
    assert [part.rate for part in cfg.parts] == [0.2, 0.2, 0.2]


@pytest.mark.parametrize(
    "text, value", [("2**10", 1024), ("2 * 512", 1024), ("-3+4", 1), ("6/2", 3), ("7//2", 3)]
)
def test_arithmetic(text, value):
    cfg = whole()
    apply_override(cfg, f"count={text}")
    assert (cfg.count, type(cfg.count)) == (value, int)


@pytest.mark.parametrize("text", ["7/2", "2**2**99", "1/0", "abs(-1)", "count+1"])
def test_what_is_no_arithmetic_is_no_number(text):
    with pytest.raises(UsageError, match=r"expected int"):
        apply_override(whole(), f"count={text}")


def test_a_shared_node_stays_shared():
    cfg = whole()
    apply_override(cfg, "parts[0].size=9")
    assert cfg.parts[2] is cfg.parts[0]
    assert [part.size for part in fdl.build(cfg).parts] == [9, 3, 9]


def test_the_class_behind_a_default_is_untouched():
    cfg = whole()
    apply_override(cfg, "parts[1].rate=2")
    assert fdl.build(fdl.Config(Whole, name="n", parts=[])).pair == (0.9, 0.95)
    assert fdl.build(whole()).parts[1].rate == 0.5


def test_below_a_default_of_the_class_nothing_is_set():
    cfg = fdl.Config(Owner)
    with pytest.raises(
        UsageError, match="part is not set; its default, of Part, belongs to the class"
    ):
        apply_override(cfg, "part.size=9")
    apply_override(cfg, "sizes[0]=9")
    assert cfg.sizes == [9, 2]
    assert fdl.build(fdl.Config(Owner)).sizes == [1, 2]


def test_elements_are_exchanged():
    cfg = fdl.Config(Owner)
    apply_override(cfg, "parts[0]=@linear(warmup_steps=3)")
    assert fdl.get_callable(cfg.parts[0]).__name__ == "Linear"
    assert fdl.build(fdl.Config(Owner)).parts == [None]
