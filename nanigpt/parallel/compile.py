"""torch.compile for each block or for the whole model, and for functions such as the loss.

Settings of the compiler apply only to code of the run, and to no other code in the process.
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
from nanigpt.problems import Fix, Problem, require_choice, show
from nanigpt.words import one_of

log = logging.getLogger(__name__)

Scope = Literal["blocks", "model"]


class Compile:
    """A policy that compiles the model, by default each block separately.

    One compilation serves all identical blocks. The hooks of sharding stay outside of compiled
    code.

    Args:
        backend: Backend of torch.compile. `inductor` generates code. `aot_eager` only captures the
            graphs.
        fullgraph: Refuse code that cannot be captured as one graph. Otherwise the graph is split.
        scope: `blocks`, or `model` for one graph of the whole model. The latter takes longer to
            compile and can be neither sharded (FSDP) nor pipelined.
        loss: Also compile the computation of a chunk of `LinearCrossEntropy`. With scope `model`
            it is always compiled.
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
        require_choice(get_args(Scope), scope=scope)
        self.backend = backend
        self.fullgraph = fullgraph
        self.scope = scope
        self.loss = loss

    def problems(self, model: nn.Module, plan: Plan, /) -> list[Problem]:
        """Return the reasons why `model` cannot be compiled with these arguments."""
        found = []
        if self.backend not in ("inductor", "aot_eager"):  # do not import dynamo for these
            known = torch.compiler.list_backends(exclude_tags=())
            if self.backend not in known:
                found.append(Problem("backend", self.backend, one_of(map(show, known))))
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
        """Compile `model` in place. Parameters keep their names.

        Args:
            model: The model.
            budget: Share of the memory for activations that blocks with mode `budget` may use.
        """
        blocks = blocks_here(model)
        # The limit is the number of times that one function is compiled, and all blocks share one
        # function. Each block could differ from the others. It is compiled for training and for
        # validation, each with whole batches and with a last batch.
        limit = max(8, 4 * len(blocks))
        whole = self.scope == "model"
        for part, name in [(model, "forward")] if whole else [(b, body(b)) for b in blocks]:
            functorch: dict[str, Any] = {}
            first = blocks[0] if whole and blocks else part
            if recomputation(first) == "budget":
                functorch["activation_memory_budget"] = budget
                # This is for the mesh of a DTensor: the compiler assumes that it holds tensors.
                functorch["unsafe_treat_script_objects_as_zero_size"] = True
            # The host learns in the middle of a block how many tokens experts have. With
            # fullgraph=False, the graph would be split there.
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
            # There are few shapes, in training and in evaluation, and each is compiled separately,
            # since not all operations of DTensors support symbolic shapes.
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
    """Let a compiled backward pass run twice: for gradients of inputs, then of weights.

    Without it, the first pass would overwrite buffers that the second reads.
    """
    import torch._functorch.config as config

    return config.patch(donated_buffer=False)


class Compilations:
    """A counter of the graphs that this process compiles, which warns of late compilations."""

    def __init__(self) -> None:
        self._compiled = _graphs.total()
        self._since = time.time_ns()
        self._times: Counter[str] = Counter()

    def after(self, what: str, *, settled: int) -> int:
        """Return the number of graphs that this process has compiled so far.

        Call this each time after `what` was done. It logs a warning if anything was compiled after
        `what` had been done `settled` times, since steps that compile take long.

        Args:
            what: Name of the work, for the warning.
            settled: Number of times that the work is expected to compile.
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
"""Number of graphs that each backend has compiled in this process."""


@functools.cache  # torch finds compiled code by the identity of its backend
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
        # At each compilation torch warns that a recomputation policy, which compiled blocks have,
        # does not support operators that change their inputs. Blocks have no such operators.
        with config.patch(settings), errors_only("torch._higher_order_ops.wrap"):
            return compiler(graph, inputs, **options)

    return compile_graph


def _recompile_reasons(since: int) -> list[str]:
    """Return the reasons for recompilations since a time in nanoseconds."""
    from torch._dynamo.utils import get_compilation_metrics

    late = (m for m in get_compilation_metrics() if (m.start_time_us or 0) * 1000 >= since)
    return list(dict.fromkeys(m.recompile_reason for m in late if m.recompile_reason))
