"""Which parameters an optimizer treats alike: selectors, and the groups that they make.

A selector is a kind of parameter, of which each is one,

    matrices    weight matrices between embedding and head, and stacks of them
    embedding   the token embedding, with a head that is tied to it
    head        the output head's own matrix
    vectors     gains, biases, also stacked ones, and sinks

or a pattern of the names that parameters have in a config: `layers[0]`, `layers[*].attention.wq`,
`*.bias`. `*` is any text, `?` any character; what names a module selects all that is below it.
"""

import ast
import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from nanigpt.problems import Problem, refuse, refuse_all, require_not_negative

KINDS = ("matrices", "embedding", "head", "vectors")

NamedParameters = Iterable[tuple[str, torch.nn.Parameter]]


class ParameterGroup:
    """Parameters with values of their own. One that several groups select is the first one's.

    Args:
        select: a selector, or several, of which any selects.
        lr: peak learning rate; None is the optimizer's. No tag reaches it.
        weight_decay: None is the optimizer's, and 0 for vectors.
    """

    def __init__(
        self,
        *,
        select: str | tuple[str, ...],
        lr: float | None = None,
        weight_decay: float | None = None,
    ):
        if not select or not all(selectors(select)):
            refuse("select", select, "a selector, such as 'embedding'")
        given = {"lr": lr, "weight_decay": weight_decay}
        require_not_negative(**{k: v for k, v in given.items() if v is not None})
        self.select = select
        self.lr = lr
        self.weight_decay = weight_decay

    @property
    def label(self) -> str:
        """The selectors as a part of a metric's name: `layers_attention`."""
        return "_".join(re.findall("[A-Za-z0-9]+", "_".join(selectors(self.select))))


def selectors(select: str | tuple[str, ...]) -> tuple[str, ...]:
    return (select,) if isinstance(select, str) else tuple(select)


def kind(name: str, parameter: torch.Tensor) -> str:
    """The one of `KINDS` that a parameter is."""
    module, _, last = name.rpartition(".")
    if parameter.ndim < 2 or last.startswith("bias"):  # those of experts are stacked
        return "vectors"
    return module if module in ("embedding", "head") else "matrices"


def selects(select: str | tuple[str, ...], name: str, parameter: torch.Tensor) -> bool:
    """Whether any of the selectors selects a parameter, by the name that its model gives it."""
    path = re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", name)
    return any(
        kind(name, parameter) == selector
        if selector in KINDS
        else any(_regex(selector).match(form) for form in (path, name))
        for selector in selectors(select)
    )


def parameter_groups(
    named_parameters: NamedParameters,
    weight_decay: float,
    groups: Sequence[ParameterGroup] = (),
    *,
    metric: str = "lr",
) -> list[dict[str, Any]]:
    """Trained parameters as an optimizer of torch takes them: first those that no group selects.

    Matrices decay, vectors do not where their group does not say so. Parameters of one device mesh
    are together: one kernel updates them, which DTensors of several meshes cannot share. A group
    that selects none of these parameters is there too, empty: another rank may have some.

    Args:
        metric: under which name metrics tell the learning rate; that of a group with an own one is
            `lr` with its label.
    """
    # By group, whether they are vectors, mesh.
    made: dict[tuple[int, bool, Any], list[tuple[str, torch.nn.Parameter]]] = {}
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            chosen = (i for i, g in enumerate(groups) if selects(g.select, name, parameter))
            key = (next(chosen, -1), kind(name, parameter) == "vectors")
            mesh = getattr(parameter, "device_mesh", None)
            made.setdefault((*key, mesh), []).append((name, parameter))
    found = {index for index, _, _ in made}
    for index in set(range(-1, len(groups))) - found:
        made[index, False, None] = []
    dicts = []
    for (index, vectors, _), named in sorted(made.items(), key=lambda item: item[0][:2]):
        group = groups[index] if index >= 0 else ParameterGroup(select="*")
        decay = group.weight_decay
        if decay is None:
            decay = 0.0 if vectors else weight_decay
        entry = {"params": named, "weight_decay": decay, "metric": metric}
        if index >= 0:
            entry["select"] = selectors(group.select)
        if group.lr is not None:
            entry |= {"lr": group.lr, "metric": f"lr_{group.label}"}
        if not named:
            entry["param_names"] = []  # which torch finds in others by itself
            if index >= 0:
                entry["unmatched"] = f"groups[{index}].select={group.select!r}"
        dicts.append(entry)
    return dicts


def require_matches(optimizer: torch.optim.Optimizer) -> None:
    """Checks that every selector found something, of an optimizer of a whole model; one that
    several optimizers have in common, in one of them.

    Raises:
        ComponentError: one did not; its problems name all such.
    """
    every = optimizer.param_groups
    found = {g["select"] for g in every if "select" in g and g["params"]}
    unmatched = [g["unmatched"] for g in every if "unmatched" in g and g.get("select") not in found]
    expected = (
        f"one of {', '.join(KINDS)}, or a pattern of names, such as 'layers[*].attention.wq', of "
        "trained parameters that no group before it selects, but none is left for it"
    )
    parts = [text.partition("=") for text in unmatched]
    refuse_all(Problem(name, ast.literal_eval(value), expected) for name, _, value in parts)


def learning_rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Present learning rates by the names that metrics have for them, `lr` first."""
    rates = {group.get("metric", "lr"): group["lr"] for group in optimizer.param_groups}
    return dict(sorted(rates.items()))


def _regex(selector: str) -> re.Pattern:
    wild = {"*": ".*", "?": "."}
    text = "".join(wild.get(c) or re.escape(c) for c in selector.removeprefix("model."))
    return re.compile(rf"{text}(\.|\[|$)")
