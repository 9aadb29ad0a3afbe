"""Problems read well without a config, and carry what the config layer needs."""

import pickle

import pytest
import torch

from nanigpt.problems import ComponentError, Fix, Problem, on_behalf_of, refuse, refuse_all, show


def test_a_refused_argument_reads_well_by_itself():
    with pytest.raises(ComponentError) as caught:
        refuse("lr", -1, "more than 0")
    assert str(caught.value) == "lr=-1: expected more than 0"
    assert isinstance(caught.value, ValueError)
    assert caught.value.problems == (Problem("lr", -1, "more than 0"),)


def test_several_problems_are_one_message():
    found = [Problem("a", 1, "2"), Problem("b", "x", "a number", "set it to a number")]
    with pytest.raises(ComponentError, match="^a=1: expected 2; b='x': expected a number; try set"):
        refuse_all(found)
    refuse_all([])


@pytest.mark.parametrize(
    "problem, text",
    [
        (Problem("n_heads", 6, "a multiple of tp=4", Fix(None, "n_heads", 8)),
         "n_heads=6: expected a multiple of tp=4; try n_heads=8"),
        (Problem("", ..., "one gated norm at most"), "expected one gated norm at most"),
        (Problem("layers", ..., "at least 4 layers"), "layers: expected at least 4 layers"),
        (Problem("norm", torch.nn.Sequential(torch.nn.ReLU()), "a norm"),
         "norm=Sequential: expected a norm"),
        (Problem("dtype", torch.float16, "bfloat16", Fix(None, "dtype", torch.bfloat16)),
         "dtype=float16: expected bfloat16; try dtype=bfloat16"),
        (Problem("a", 1, "2", (Fix(None, "a", 2), Fix(None, "b", torch.nn.ReLU))),
         "a=1: expected 2; try a=2 and b=ReLU"),
    ],
)  # fmt: skip
def test_texts(problem, text):
    assert str(problem) == text


def test_values_without_a_short_form_are_shown_by_their_class():
    assert show(object()) == "object"
    assert show(torch.nn.Linear) == "Linear"
    assert show(len) == "len"
    assert show({"a": 1}) == "{'a': 1}"


def test_an_error_crosses_processes():
    error = ComponentError(Problem("a", 1, "2", Fix(None, "a", 2)))
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_problems_of_a_function_belong_to_its_partial():
    outer, inner = object(), object()
    with pytest.raises(ComponentError) as caught, on_behalf_of(outer), on_behalf_of(inner):
        refuse("lr", -1, "more than 0")
    assert caught.value.problems[0].component is inner
    with pytest.raises(ComponentError) as caught, on_behalf_of(outer):
        refuse("lr", -1, "more than 0")
    assert caught.value.problems[0].component is outer


def test_mistaken_use_is_found():
    with pytest.raises(TypeError):
        ComponentError()
    with pytest.raises(TypeError):
        Fix("lr", object(), 3)
    with pytest.raises(TypeError):
        Problem(object(), 1, "2")
