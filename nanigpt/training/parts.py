"""Check the parts of a run that may be the user's, as far as a few calls show."""

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nanigpt.errors import UsageError
from nanigpt.models.attributes import without_values
from nanigpt.parallel.world import World
from nanigpt.problems import ComponentError, Problem, refuse_all, reported
from nanigpt.training.evaluation import return_problems
from nanigpt.training.trackers.tracker import Tracker

if TYPE_CHECKING:
    from nanigpt.training.trainer import Trainer


def part_problems(trainer: "Trainer") -> list[Problem]:
    """Return problems with a trainer's schedule and evaluations, and with tensors of its parts."""
    found = [p for each in trainer.evaluations.values() for p in return_problems(each)]
    try:
        for step in (0, trainer.steps - 1):
            trainer.factor(step)
    except ComponentError as error:
        found += error.problems
    parts = (trainer.data, trainer.task, trainer.schedule)
    for part in (*parts, *trainer.evaluations.values(), *trainer.trackers):
        for name in without_values(part):
            expected = f"a tensor {name!r} that setup() or a later call makes, not __init__: a run "
            expected += "is built on meta, where tensors have no values"
            found.append(Problem("", ..., expected, component=part))
    return found


def check_trackers(trackers: Iterable[Tracker], world: World) -> None:
    """Refuse on every rank what the trackers of the main process report.

    Raises:
        UsageError: A tracker reports a problem.
    """
    found: list[Problem] = []
    for tracker in trackers if world.is_main else ():
        answer: Any = getattr(tracker, "problems", list)()
        found += [replace(p, component=p.component or tracker) for p in reported(tracker, answer)]
    if any(world.gather("refused" if found else "")):
        refuse_all(found)
        raise UsageError("the main process refuses a tracker; its message says why")
