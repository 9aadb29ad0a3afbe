"""Parts of a run that are the user's: a mistake in one is a message that names it."""

import fiddle as fdl
import pytest
import torch

from nanigpt.cli.main import main
from nanigpt.config.check.build import build, check
from nanigpt.errors import UsageError
from nanigpt.parallel.world import start_world
from nanigpt.problems import ComponentError, Problem
from nanigpt.training.run_directory import RunDirectory
from tests.support import QUICK, tiny, train


def text(step, steps):
    return "0.5"


def nothing(step, steps):
    return None


def nan_at_the_end(step, steps):
    return float("nan") if step == steps - 1 else 1.0


def infinite(step, steps):
    return float("inf")


def negative(step, steps):
    return -1.0


def raising(step, steps):
    return 1 / step


def nan_in_the_middle(step, steps):
    return float("nan") if step == 2 else 1.0


@pytest.mark.parametrize(
    "schedule, message",
    [
        (text, "for step 0 of 5, not '0.5'"),
        (nothing, "for step 0 of 5, not None"),
        (nan_at_the_end, "for step 4 of 5, not nan"),
        (infinite, "for step 0 of 5, not inf"),
        (negative, "for step 0 of 5, not -1.0"),
        (raising, "for step 0 of 5, but it raised ZeroDivisionError: division by zero"),
    ],
)
def test_a_schedule_that_returns_no_factor_is_refused(schedule, message):
    cfg = tiny("fiddler:steps(5)")
    cfg.schedule = schedule
    trainer = check(cfg)
    [problem] = trainer.problems(1)
    assert str(problem) == f"schedule: expected a finite number, 0 or more, {message}"
    assert problem.component is trainer


def test_a_schedule_that_goes_wrong_later_ends_training_with_a_message(tmp_path):
    cfg = tiny("fiddler:steps(5)", *QUICK)
    cfg.schedule = nan_in_the_middle
    with pytest.raises(UsageError, match="^schedule: expected .* for step 2 of 5, not nan"):
        train(cfg, tmp_path)


class Annotated:
    def setup(self):
        """Read nothing."""

    def is_due(self, step, steps, /):
        return True

    def run(self, parallel, task, data, /) -> list[float]:
        return [1.0]


class Returns(Annotated):
    answer: object = [1.0]

    def run(self, parallel, task, data, /):
        return self.answer


class ReturnsText(Returns):
    answer = {"word": "a"}


class ReturnsMany(Returns):
    answer = {"numbers": torch.ones(2)}


class ReturnsNumbers(Returns):
    answer = {"tensor": torch.tensor(2.0), "count": 3, "scalar": torch.tensor([1.5])[0].numpy()[()]}


class SaysObject(Annotated):
    def run(self, parallel, task, data, /) -> object:
        return {}


class SaysMapping(Annotated):
    def run(self, parallel, task, data, /) -> dict[str, float]:
        return {}


def with_evaluation(kind):
    cfg = tiny("fiddler:steps(2)", *QUICK)
    cfg.evaluations["mine"] = fdl.Config(kind)
    return cfg


def test_an_evaluation_that_says_it_returns_no_mapping_is_refused():
    [problem] = check(with_evaluation(Annotated)).problems(1)
    assert str(problem) == (
        "expected Annotated.run() to return a mapping of names to numbers, not list[float]"
    )
    for kind in (Returns, SaysObject, SaysMapping):
        assert check(with_evaluation(kind)).problems(1) == []


@pytest.mark.parametrize(
    "kind, told",
    [
        (Returns, "not list"),
        (ReturnsText, "not 'a' for 'word'"),
        (ReturnsMany, "not tensor([1., 1.]) for 'numbers'"),
    ],
)
def test_an_evaluation_that_returns_no_mapping_ends_training_with_a_message(kind, told, tmp_path):
    with pytest.raises(ComponentError) as raised:
        train(with_evaluation(kind), tmp_path)
    assert str(raised.value) == (
        f"expected {kind.__name__}.run() to return a mapping of names to numbers, {told}"
    )


def test_numbers_of_any_kind_are_rows(tmp_path):
    row = train(with_evaluation(ReturnsNumbers), tmp_path)[-1]
    assert (row["mine_tensor"], row["mine_count"], row["mine_scalar"]) == (2.0, 3, 1.5)


class Policy:
    answer: object = ()

    def problems(self, model, plan, /):
        return self.answer

    def apply(self, model, layout, /):
        """Change nothing."""


class SaysText(Policy):
    answer = "no"


class SaysTexts(Policy):
    answer = [Problem("", ..., "more"), "no"]


class SaysNothing(Policy):
    answer = None


@pytest.mark.parametrize(
    "kind, told", [(SaysText, "'no'"), (SaysNothing, "None"), (SaysTexts, "one that has 'no'")]
)
def test_what_is_no_problem_names_the_component(kind, told):
    cfg = tiny()
    cfg.parallelizer.extra = [fdl.Config(Policy), fdl.Config(kind)]
    trainer = check(cfg)
    [problem] = trainer.problems(1)
    assert problem.component is trainer.parallelizer.extra[1]
    assert problem.expected == (
        f"problems() that returns a list of nanigpt.problems.Problem, not {told}"
    )


class Tracked:
    def open(self, info, /):
        """Track nothing."""

    def write(self, rows, /):
        """Track nothing."""

    def close(self):
        """Track nothing."""

    def problems(self):
        return ["no"]


def test_a_tracker_that_returns_no_problem_is_named(tmp_path):
    cfg = tiny()
    cfg.trackers = [fdl.Config(Tracked)]
    with pytest.raises(ComponentError, match=r"problems\(\) that returns a list") as raised:
        build(cfg).prepare(start_world("cpu"), RunDirectory(tmp_path / "run"))
    assert isinstance(raised.value.problems[0].component, Tracked)


class Held(Annotated):
    def __init__(self):
        self.weights = torch.ones(3)

    run = SaysMapping.run


def test_a_tensor_that_a_part_makes_too_early_is_named():
    trainer = check(with_evaluation(Held))
    [problem] = trainer.problems(1)
    assert problem.component is trainer.evaluations["mine"]
    assert "a tensor 'weights' that setup() or a later call makes" in problem.expected


def test_the_command_tells_where_training_went_wrong(tmp_path, monkeypatch, capsys):
    from nanigpt.training.evaluation import Evaluation

    monkeypatch.setattr(Evaluation, "run", Returns.run)
    monkeypatch.setattr(Evaluation, "answer", [1.0], raising=False)
    options = [f"--config={d}" for d in ("config:llama3_debug", "fiddler:debug_scale")]
    options += ["--config=fiddler:steps(1)", f"--run_dir={tmp_path / 'run'}"]
    assert main(["train", *options]) == 2
    err = capsys.readouterr().err
    assert "nanigpt: evaluations['val']: expected Evaluation.run() to return a mapping" in err
    assert "Traceback" not in err
