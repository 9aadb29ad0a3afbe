"""Groups of parameters that an optimizer treats the same, and the selectors that make them.

A selector is either a kind of parameter (each parameter has exactly one),

    matrices    weight matrices between embedding and head, and stacks of them
    embedding   the token embedding, with a head that is tied to it
    head        the output head's own matrix
    vectors     gains, biases (also stacked ones), and sinks

or a pattern of the names that parameters have in a config: `layers[0]`, `layers[*].attention.wq`,
`*.bias`. `*` matches any text and `?` any character. The name of a module selects all its
parameters.
"""

import ast
import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from nanigpt.problems import Problem, refuse, refuse_all, require_not_negative
from nanigpt.words import one_of

KINDS = ("matrices", "embedding", "head", "vectors")

NamedParameters = Iterable[tuple[str, torch.nn.Parameter]]


class ParameterGroup:
    """Parameters with values of their own. A parameter belongs to the first group that selects it.

    Args:
        select: One selector, or several that add up.
        lr: Peak learning rate; None is the optimizer's. It has no tag.
        weight_decay: Weight decay; None is the optimizer's, or 0 for vectors.
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
        """Return the selectors as a part of a metric's name, such as `layers_attention`."""
        return "_".join(re.findall("[A-Za-z0-9]+", "_".join(selectors(self.select))))


def selectors(select: str | tuple[str, ...]) -> tuple[str, ...]:
    """Return selectors as a tuple, even if there is only one."""
    return (select,) if isinstance(select, str) else tuple(select)


def kind(name: str, parameter: torch.Tensor) -> str:
    """Return which of `KINDS` a parameter is."""
    module, _, last = name.rpartition(".")
    if parameter.ndim < 2 or last.startswith("bias"):  # experts have stacks of biases
        return "vectors"
    return module if module in ("embedding", "head") else "matrices"


def selects(select: str | tuple[str, ...], name: str, parameter: torch.Tensor) -> bool:
    """Return whether any of the selectors selects a parameter, given its name in the model."""
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
    """Divide trained parameters into groups for an optimizer of PyTorch.

    The first group has the parameters that no other selects. Matrices decay; vectors do not, unless
    their group says so. Parameters of different device meshes are in different groups, since one
    kernel cannot update DTensors of several meshes. A group that selects none of these parameters
    is also returned, but empty, since another rank may have some of its parameters.

    Args:
        named_parameters: Names and parameters of a model.
        weight_decay: Weight decay of matrices in groups without a value of their own.
        groups: The groups.
        metric: Name under which metrics show the learning rate. For a group with a learning rate of
            its own, it is `lr` with the group's label.
    """
    # Keys are the group's index, whether the parameters are vectors, and their mesh.
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
            entry["param_names"] = []  # in other groups, torch finds the names itself
            if index >= 0:
                entry["unmatched"] = f"groups[{index}].select={group.select!r}"
        dicts.append(entry)
    return dicts


def require_matches(optimizer: torch.optim.Optimizer) -> None:
    """Check that every selector of a whole model's optimizer has found a parameter.

    If several optimizers share a selector, it is enough that one has found a parameter.

    Raises:
        ComponentError: A selector has found none. Its problems name all such selectors.
    """
    every = optimizer.param_groups
    found = {g["select"] for g in every if "select" in g and g["params"]}
    unmatched = [g["unmatched"] for g in every if "unmatched" in g and g.get("select") not in found]
    expected = (
        f"{one_of(KINDS)}, or a pattern of names, such as 'layers[*].attention.wq'; it "
        "must match a trained parameter that no earlier group selects"
    )
    parts = [text.partition("=") for text in unmatched]
    refuse_all(Problem(name, ast.literal_eval(value), expected) for name, _, value in parts)


def learning_rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Return the current learning rates by their names in metrics, `lr` first."""
    rates = {group.get("metric", "lr"): group["lr"] for group in optimizer.param_groups}
    return dict(sorted(rates.items()))


def _regex(selector: str) -> re.Pattern:
    wild = {"*": ".*", "?": "."}
    text = "".join(wild.get(c) or re.escape(c) for c in selector.removeprefix("model."))
    return re.compile(rf"{text}(\.|\[|$)")
