"""`set:` by path, typed by annotation."""

import fiddle as fdl
import pytest
import torch

from nanigpt.config.compose.flag import compose
from nanigpt.config.compose.overrides import apply_override, apply_tag
from nanigpt.errors import UsageError
from tests.config.components import Color, Owner, Part, Whole, whole
from tests.config.signatures import Table, Variadic, scaled, sized


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


@pytest.mark.parametrize(
    "assignment, expected",
    [
        ("factor=3", {"size": 1, "factor": 3.0}),
        ("offset=4", {"size": 1, "offset": 4}),
        ("size=5", {"size": 5}),
    ],
)
def test_arguments_of_a_partial(assignment, expected):
    cfg = fdl.Config(Owner, part=fdl.Partial(scaled, size=1))
    apply_override(cfg, f"part.{assignment}")
    assert fdl.ordered_arguments(cfg.part) == expected


def test_a_partial_of_a_class_of_torch():
    cfg = fdl.Config(Owner, part=fdl.Partial(torch.optim.AdamW, lr=1e-3))
    apply_override(cfg, "part.lr=3e-4")
    assert cfg.part.lr == 3e-4
    with pytest.raises(UsageError, match="part .AdamW. has no 'lrr'; did you mean 'lr'"):
        apply_override(cfg, "part.lrr=1")


def test_positional_arguments_and_further_keywords():
    cfg = fdl.Config(Variadic, 1, 2, 3, zz=4.0)
    for assignment in ("second=7", "[0]=8", "[2]=9", "zz=5", "third=6", "other=1"):
        apply_override(cfg, assignment)
    assert fdl.build(cfg).given == (8, 7, (9,), 6, {"zz": 5.0, "other": 1.0})
    for name, told in (
        ("more", r"has no 'more': \*\*more are further arguments; set one by its own name"),
        ("rest", r"has no 'rest': \*rest are positional; set one by its number: \[0\]"),
        ("first", r"has no 'first': it is positional; set it by its number: \[0\]"),
        ("secnd", "has no 'secnd'; did you mean 'second'"),
        ("[7]", r"it has no index \[7\]"),
        ("[2]", "expected int, not str"),
    ):
        with pytest.raises(UsageError, match=told):
            apply_override(cfg, f"{name}=x")


def test_an_annotation_that_cannot_be_resolved_types_nothing_else():
    cfg = fdl.Config(Variadic, 1)
    with pytest.raises(UsageError, match="expected int, not str"):
        apply_override(cfg, "second=x")
    apply_override(cfg, "third=x")
    assert cfg.third == "x"


def test_a_dict_that_the_class_makes_anew():
    cfg = fdl.Config(Table)
    apply_override(cfg, "rows['q']=4")
    assert fdl.build(cfg).rows == {"q": 4}
    assert fdl.build(fdl.Config(Table)).rows == {}


def test_keys_that_are_no_strings():
    cfg = fdl.Config(Table, rows={0: 1, -1: 2, "a": 3, None: 4, (1, 2): 5})
    cfg.by_color = {Color.RED: 1, Color.BLUE: 2}
    for key in ("0", "-1", "a", "None", "(1,2)"):
        apply_override(cfg, f"rows[{key}]=7")
    apply_override(cfg, "by_color[Color.RED]=8")
    apply_override(cfg, "by_color[BLUE]=9")
    assert cfg.rows == {0: 7, -1: 7, "a": 7, None: 7, (1, 2): 7}
    assert cfg.by_color == {Color.RED: 8, Color.BLUE: 9}
    for path, told in (
        ("rows[3]", "rows has no key 3; known: 0, -1, 'a', None"),
        ("by_color[GREEN]", "by_color has no key GREEN; known: Color.RED, Color.BLUE"),
        ("by_color[RED]", "expected int, not str"),
    ):
        with pytest.raises(UsageError, match=told):
            apply_override(cfg, f"{path}=x")
    cfg.rows = {"a": 1}
    with pytest.raises(UsageError, match=r"no key b; a new one is written \['b'\]; known: 'a'"):
        apply_override(cfg, "rows[b]=2")


def test_a_protocol_takes_what_has_its_members_and_nothing_else():
    cfg = fdl.Config(sized, 1)
    for text in ("[1, x]", "[1, 2]", "x", "3"):
        with pytest.raises(UsageError, match="expected Sized, not"):
            apply_override(cfg, f"of={text}")


def test_containers_of_abstract_types():
    cfg = fdl.Config(Table, parts=[fdl.Config(Part)])
    with pytest.raises(UsageError, match=r"\[0\]=1: expected Part, not int"):
        apply_override(cfg, "parts=[1]")
    with pytest.raises(UsageError, match=r"\['a'\]=x: expected int, not str"):
        apply_override(cfg, "rows={a: x}")
    apply_override(cfg, "by_color={RED: 1e1}")
    assert cfg.by_color == {Color.RED: 10}
    apply_override(cfg, "parts[0].size=4")
    assert cfg.parts[0].size == 4


@pytest.mark.parametrize("text", ["inf", "-inf", "Inf"])
def test_infinity_is_written_out(text):
    cfg = whole()
    apply_override(cfg, f"parts[0].rate={text}")
    assert cfg.parts[0].rate == float(text)


@pytest.mark.parametrize(
    "text, told",
    [
        ("1e400", "expected float, but 1e400 is too large; infinity is written inf"),
        ("1e200*1e200", r"1e200\*1e200 is too large"),
        ("2**64*2**64" + "*2**64" * 20, "the number is too large"),
        ("2**99", r"2\*\*99 is too large"),
        ("nan", "expected float, not nan"),
        ("1/0", "give no number"),
        ("-" * 5000 + "1", "expected float"),
    ],
)
def test_numbers_that_are_none(text, told):
    with pytest.raises(UsageError, match=told):
        apply_override(whole(), f"parts[0].rate={text}")


def test_a_text_is_no_number():
    cfg = whole()
    apply_override(cfg, "name=9**9**9")
    assert cfg.name == "9**9**9"


def test_a_step_of_zero_is_told():
    with pytest.raises(UsageError, match=r"the step of \[::0\] is 0"):
        apply_override(whole(), "parts[::0].size=1")


def test_only_components_that_fit_are_advised():
    with pytest.raises(UsageError, match="set its arguments one by one$"):
        apply_override(whole(), "parts[0]=7")
    with pytest.raises(
        UsageError, match="or exchange it: .*@cosine, .*@linear, .*@warmup_stable_decay"
    ):
        apply_override(compose(["config:llama3_debug"]), "schedule=7")


def test_elements_are_exchanged():
    cfg = fdl.Config(Owner)
    apply_override(cfg, "parts[0]=@linear(warmup_steps=3)")
    assert fdl.get_callable(cfg.parts[0]).__name__ == "Linear"
    assert fdl.build(fdl.Config(Owner)).parts == [None]
