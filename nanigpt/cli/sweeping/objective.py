"""The number that a sweep compares trials by.

Any number in a row of metrics.jsonl can be it, also that of a user's own task or evaluation. So a
name is refused before the first trial only if it is surely wrong; otherwise the rows of the first
trial that ends decide.
"""

from nanigpt.errors import UnknownName
from nanigpt.training.evaluation import Evaluation
from nanigpt.training.trainer import Trainer


def require_possible(objective: str, trainer: Trainer) -> None:
    """Refuse an objective that no row of this run can have.

    Raises:
        UnknownName: the name differs from a known one in case or punctuation only, or begins as the
            numbers of an evaluation do but is none of them.
    """
    of_evaluations = {
        f"{name}_": [f"{name}_{measure}" for measure in getattr(trainer.task, "measures", ())]
        for name, evaluation in trainer.evaluations.items()
        if isinstance(evaluation, Evaluation)  # a user's own may have any numbers
    }
    known = [name for names in of_evaluations.values() for name in names]
    known += [*trainer.task.losses(trainer.model), "grad_norm", "tokens_per_second", "ms_per_step"]
    if objective in known:
        return
    alike = any(_letters(objective) == _letters(name) for name in known)
    mistaken = any(
        names and objective.startswith(prefix) for prefix, names in of_evaluations.items()
    )
    if alike or mistaken:
        raise UnknownName(f"--objective={objective}: not among the metrics", objective, known)


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name)).lower()
