"""torch.compile: of each block, or of the model as a whole, and of functions such as the loss.

What the compiler is set to holds where code of the run is compiled, and nowhere else.
"""

import contextlib
import functools
import inspect
import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import nn

from nanigpt.logs import errors_only
from nanigpt.models.moe.experts import Experts
from nanigpt.models.protocol import blocks_here, body, recomputation
from nanigpt.parallel.plan import Plan
from nanigpt.problems import Fix, Problem, refuse

log = logging.getLogger(__name__)

Scope = Literal["blocks", "model"]


class Compile:
    """Compiles the model, by default each block for itself.

    One compilation serves all blocks that are alike, and the hooks of sharding stay outside of what
    is compiled.

    Args:
        backend: of torch.compile: `inductor` generates code, `aot_eager` only captures the graphs.
        fullgraph: refuse code that cannot be captured as one graph, rather than split it.
        scope: `blocks`, or `model` for a graph of the whole, which takes longer to compile and
            cannot be sharded (FSDP) nor pipelined.
        loss: compile a chunk of `LinearCrossEntropy`, too; with scope `model` it always is.
    """

    may_change_on_resume = True

    def __init__(
        self,
        *,
        backend: str = "inductor",
        fullgraph: bool = True,
        scope: Scope = "blocks",
        loss: bool = True,
    ):
        if scope not in get_args(Scope):
            refuse("scope", scope, f"one of {', '.join(get_args(Scope))}")
        self.backend = backend
        self.fullgraph = fullgraph
        self.scope = scope
        self.loss = loss

    def problems(self, model: nn.Module, plan: Plan, /) -> list[Problem]:
        """Return why `model` cannot be compiled so."""
        found = []
        if self.backend not in ("inductor", "aot_eager"):  # else dynamo would be imported here
            known = torch.compiler.list_backends(exclude_tags=())
            if self.backend not in known:
                found.append(Problem("backend", self.backend, f"one of {', '.join(known)}"))
        if self.scope == "blocks":
            return found
        modes = {recomputation(block) for block in blocks_here(model)}
        split = plan.sizes["tp"] * plan.sizes["ep"] > 1
        for there, why in (
            (plan.copies > 1, "parameters are gathered block by block, outside of compiled code"),
            (plan.sizes["pp"] > 1, "ranks of pp have parts of it"),
            (
                "budget" in modes and len(modes) > 1,
                "only all layers together can have activation_checkpointing='budget'",
            ),
            (
                split and "full" in modes,
                "layers split over ranks are recomputed outside of compiled code, unless they are "
                "'selective'",
            ),
        ):
            if there:
                fix = Fix(None, "scope", "blocks")
                found.append(Problem("scope", "model", f"'blocks', since {why}", fix))
        return found

    def apply(self, model: nn.Module, *, budget: float = 1.0) -> None:
        """Compile in place; names of parameters stay.

        Args:
            budget: share of the memory for activations that blocks with mode `budget` may take.
        """
        blocks = blocks_here(model)
        # The limit is on how often one function is compiled, and all blocks have the same. Each
        # could differ from the others, and needs it in training and validation, for whole batches
        # and last ones.
        limit = max(8, 4 * len(blocks))
        whole = self.scope == "model"
        for part, name in [(model, "forward")] if whole else [(b, body(b)) for b in blocks]:
            functorch: dict[str, Any] = {}
            first = blocks[0] if whole and blocks else part
            if recomputation(first) == "budget":
                functorch["activation_memory_budget"] = budget
                # The mesh of a DTensor, in which the compiler suspects tensors.
                functorch["unsafe_treat_script_objects_as_zero_size"] = True
            # The host learns in the middle of a block how many tokens experts have: a graph that
            # may be split would be split there.
            routed = any(isinstance(module, Experts) for module in part.modules())
            compiled = self._compiled(
                getattr(part, name), limit=limit, scalars=routed, functorch=functorch
            )
            setattr(part, name, compiled)

    def function(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a compiled function, such as a loss."""
        return self._compiled(function)

    def _compiled(
        self,
        function: Callable[..., Any],
        *,
        limit: int | None = None,
        scalars: bool = False,
        functorch: dict[str, Any] | None = None,
    ) -> Callable[..., Any]:
        import torch._dynamo.config as dynamo

        settings: dict[str, Any] = {"capture_scalar_outputs": True} if scalars else {}
        options: dict[str, Any] = {}
        if limit is not None and "recompile_limit" in inspect.signature(torch.compile).parameters:
            options["recompile_limit"] = limit
        elif limit is not None:  # torch 2.11
            settings["recompile_limit"] = limit
        compiled = torch.compile(
            function,
            backend=_backend(self.backend, tuple((functorch or {}).items())),
            fullgraph=self.fullgraph,
            # Shapes are few, those of training and of evaluation, and each is compiled for itself:
            # DTensors do not take symbolic ones everywhere.
            dynamic=False,
            **options,
        )
        if not settings:
            return compiled
        patch = dynamo.patch(**settings)

        @functools.wraps(function)
        def patched(*args: Any, **kwargs: Any) -> Any:
            with patch:
                return compiled(*args, **kwargs)

        return patched


def keeping_buffers() -> contextlib.AbstractContextManager[Any]:
    """Let a compiled backward pass run twice, for gradients of inputs and then of weights.

    Without it, the first pass would overwrite buffers that the second reads.
    """
    import torch._functorch.config as config

    return config.patch(donated_buffer=False)


class Compilations:
    """Counts the graphs that this process compiles, and tells of those that come late."""

    def __init__(self) -> None:
        self._compiled = _graphs.total()
        self._since = time.time_ns()
        self._times: Counter[str] = Counter()

    def after(self, what: str, *, settled: int) -> int:
        """To be called each time that `what` was done; returns the graphs compiled so far.

        Logs a warning if, after it was done `settled` times, something was compiled again, since
        steps that compile take long.
        """
        new, since = _graphs.total() - self._compiled, self._since
        self._compiled, self._since = _graphs.total(), time.time_ns()
        self._times[what] += 1
        if new and self._times[what] > settled:
            reasons = "; ".join(_recompile_reasons(since)) or "torch tells no reason"
            log.warning("compiled %d graphs in %s number %d of this process: %s",
                        new, what, self._times[what], reasons)  # fmt: skip
        return self._compiled


_graphs: Counter[str] = Counter()
"""How many graphs each backend has compiled in this process."""


@functools.cache  # compiled code is found again by the identity of its backend
def _backend(name: str, functorch: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
    """Return a backend that counts compilations, and compiles with these settings."""
    import torch._functorch.config as config
    from torch._dynamo.backends.registry import lookup_backend

    compiler = lookup_backend(name)
    settings = {key: value for key, value in functorch if hasattr(config, key)}

    def compile_graph(
        graph: torch.fx.GraphModule, inputs: list[Any], **options: Any
    ) -> Callable[..., Any]:
        _graphs[name] += 1
        # That a policy of recomputation, with which blocks are compiled, takes no operators that
        # change their inputs, is told at each compilation; blocks have none.
        with config.patch(settings), errors_only("torch._higher_order_ops.wrap"):
            return compiler(graph, inputs, **options)

    return compile_graph


def _recompile_reasons(since: int) -> list[str]:
    """Why what had been compiled did not fit, after a time in nanoseconds."""
    from torch._dynamo.utils import get_compilation_metrics

    late = (m for m in get_compilation_metrics() if (m.start_time_us or 0) * 1000 >= since)
    return list(dict.fromkeys(m.recompile_reason for m in late if m.recompile_reason))
