"""Call a loss once on meta, to find a loss that training cannot use.

Shapes: B batch, L sequence, D dim.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from nanigpt.models.attributes import without_values
from nanigpt.models.protocol import compute_dtype
from nanigpt.models.reset import on_meta
from nanigpt.models.shapes import form, needs_values, shape_problems
from nanigpt.problems import Problem, first_line, show

log = logging.getLogger(__name__)


def loss_problems(
    loss: Callable[..., Any], model: nn.Module, tokens_BL: torch.Tensor
) -> list[Problem]:
    """Return why a loss cannot train a model, about the argument `loss`.

    Args:
        loss: Function that is called with a head, x_BLD and labels_BL.
        model: Model that fits its tokens.
        tokens_BL: Tokens on meta.
    """
    found = _tensors(loss)
    if found:
        return found

    def finish(
        head: nn.Module, x_BLD: torch.Tensor, /, *further: Any, labels_BL: torch.Tensor
    ) -> torch.Tensor:
        found.extend(_call(loss, head, x_BLD, labels_BL))
        return torch.zeros(1, device="meta")

    head, dim = getattr(model, "head", None), getattr(model, "dim", None)
    if isinstance(head, nn.Module) and isinstance(dim, int):
        dtype = compute_dtype(model)
        x_BLD = torch.zeros(*tokens_BL.shape, dim, dtype=dtype, device="meta")
        with on_meta(head):
            finish(head, x_BLD, labels_BL=tokens_BL)
    else:  # only the model itself knows what it calls the loss with
        options = {"finish": finish, "targets": {"labels_BL": tokens_BL}}
        found += shape_problems(model, tokens_BL, **options)
    return found


def _tensors(loss: Any) -> list[Problem]:
    """Return a problem for each tensor that a loss has: nothing gives it memory and values."""
    names = list(without_values(loss))
    if isinstance(loss, nn.Module):
        names += [name for name, _ in (*loss.named_parameters(), *loss.named_buffers())]
    why = "makes when it is called: a run is built on meta, where tensors have no values"
    return [Problem("loss", loss, f"a loss whose tensor {name!r} it {why}") for name in names]


def _call(
    loss: Callable[..., Any], head: nn.Module, x_BLD: torch.Tensor, labels_BL: torch.Tensor
) -> list[Problem]:
    given = f"(head, x_BLD {form(x_BLD)}, labels_BL {form(labels_BL)})"
    expected = f"a float32 scalar, the sum of losses, from a call with {given}"
    try:
        with torch.enable_grad():
            found = loss(head, x_BLD.detach().requires_grad_(), labels_BL)
    except Exception as error:  # a user's function may raise anything
        if not needs_values(error):
            return [Problem("loss", loss, f"{expected}, but it raised {first_line(error)}")]
        why = f"it does not run on meta tensors, which have no values ({first_line(error)})"
        log.warning("the loss %s is not checked: %s", show(loss), why)
        return []
    wrong = _wrong(found)
    return [] if wrong is None else [Problem("loss", loss, f"{expected}, not {wrong}")]


def _wrong(found: Any) -> str | None:
    """Say what is wrong with the result of a loss, or return None."""
    if not isinstance(found, torch.Tensor):
        return f"a result of type {type(found).__name__}"
    if found.shape != ():
        return f"a tensor of shape {form(found)}"
    if not found.is_floating_point() or found.dtype.itemsize < 4:
        return f"one of {show(found.dtype)}"
    return None if found.requires_grad else "one without a gradient"
