"""The training loop, and the root of every run's DAG."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated

import torch

from nanigpt import tags
from nanigpt.data.dataset import IGNORED, Batch, PackedDataset
from nanigpt.data.loader import Loader
from nanigpt.errors import UsageError
from nanigpt.models.counts import ParameterCounts
from nanigpt.models.decoder import Decoder
from nanigpt.models.init import initialize, materialize
from nanigpt.optim.groups import learning_rates, require_matches
from nanigpt.optim.schedule import Schedule
from nanigpt.parallel.compile import Compilations
from nanigpt.parallel.mesh import Layout
from nanigpt.parallel.parallel_model import ParallelModel
from nanigpt.parallel.parallelizer import Parallelizer
from nanigpt.parallel.world import Device, World
from nanigpt.problems import ComponentError, on_behalf_of
from nanigpt.training.checkpoint import Checkpointer, Progress
from nanigpt.training.device_checks import check_device
from nanigpt.training.evaluation import Evaluation
from nanigpt.training.garbage import GarbageCollection
from nanigpt.training.loss import CrossEntropy, LinearCrossEntropy
from nanigpt.training.metrics import Metrics
from nanigpt.training.profiling import Profiling
from nanigpt.training.run_directory import RunDirectory
from nanigpt.training.sample import Sampler

if TYPE_CHECKING:
    from nanigpt.models.huggingface.reader import Pretrained

log = logging.getLogger(__name__)


class Trainer:
    """Trains a decoder: everything that a run consists of, under one node.

    Args:
        optimizer: makes the optimizer from named parameters, which exist only once the model is
            sharded; in a DAG an `fdl.Partial`.
        steps: optimizer steps.
        global_batch_size: sequences per optimizer step, over all ranks.
        local_batch_size: sequences in one forward pass of one rank; the rest of the global batch is
            accumulated over several. None takes a rank's whole share at once.
        max_grad_norm: gradients of a larger global norm are scaled down to it.
        seed: of initial weights and sample order.
        device: `cpu`, `cuda` or `auto`.
        initial_weights: a folder of Hugging Face weights that training starts from, or None for
            random ones.
    """

    may_change_on_resume = ("device", "local_batch_size")

    def __init__(
        self,
        *,
        model: Decoder,
        data: PackedDataset,
        loader: Loader,
        loss: CrossEntropy | LinearCrossEntropy,
        optimizer: Callable[..., torch.optim.Optimizer],
        schedule: Schedule,
        parallelizer: Parallelizer,
        evaluation: Evaluation,
        checkpointer: Checkpointer,
        metrics: Metrics,
        sampler: Sampler,
        garbage_collection: GarbageCollection,
        profiling: Profiling,
        steps: Annotated[int, tags.Steps],
        global_batch_size: Annotated[int, tags.GlobalBatchSize],
        local_batch_size: Annotated[int | None, tags.LocalBatchSize] = None,
        max_grad_norm: float = 1.0,
        seed: Annotated[int, tags.Seed] = 0,
        device: Device = "auto",
        initial_weights: str | None = None,
    ):
        if steps < 1:
            raise ValueError(f"steps={steps}: expected at least 1")
        if schedule.warmup_steps >= steps:
            raise ValueError(
                f"schedule.warmup_steps={schedule.warmup_steps} is not below steps={steps}; lower "
                f"it, or use --config='fiddler:steps({steps})', which scales both"
            )
        if global_batch_size < 1 or (local_batch_size is not None and local_batch_size < 1):
            raise ValueError(
                f"global_batch_size={global_batch_size}, local_batch_size={local_batch_size}: "
                "expected at least 1"
            )
        if max_grad_norm <= 0:
            raise ValueError(f"max_grad_norm={max_grad_norm}: expected more than 0")
        longest = model.max_sequence_length
        if longest is not None and data.sequence_length > longest:
            raise ValueError(
                f"data.sequence_length={data.sequence_length} exceeds the model's "
                f"{model.max_sequence_length} positions; set both with "
                f"--config='tag:SequenceLength={data.sequence_length}'"
            )
        gathered, computed = parallelizer.fsdp.param_dtype, model.embedding.compute_dtype
        if gathered != computed:
            raise ValueError(
                f"parallelizer.fsdp.param_dtype={gathered}, "
                f"model.embedding.compute_dtype={computed}: expected equal, or "
                "losses would depend on the number of processes; set both with "
                "--config=tag:ComputeDType=bfloat16"
            )
        in_float8 = getattr(model.head, "float8", None)
        if in_float8 is not None and isinstance(loss, LinearCrossEntropy):
            raise ValueError(
                f"model.head.float8={in_float8!r}: LinearCrossEntropy multiplies in the compute "
                "dtype; set model.head.float8=None, or --config='set:loss=@cross_entropy()'"
            )
        profiling.check(steps)
        self.model = model
        self.data = data
        self.loader = loader
        self.loss = loss
        self.optimizer = optimizer
        self.schedule = schedule
        self.parallelizer = parallelizer
        self.evaluation = evaluation
        self.checkpointer = checkpointer
        self.metrics = metrics
        self.sampler = sampler
        self.garbage_collection = garbage_collection
        self.profiling = profiling
        self.steps = steps
        self.global_batch_size = global_batch_size
        self.local_batch_size = local_batch_size
        self.max_grad_norm = max_grad_norm
        self.seed = seed
        self.device = device
        if device != "auto":
            self.check_device(device)
        self.initial_weights = initial_weights

    def run(self, run: RunDirectory, world: World) -> Progress:
        """Trains to the last step, from the newest checkpoint of `run` where there is one.

        Raises:
            UsageError: text, tokenizer, batch sizes or initial weights do not fit; nothing was
                trained.
        """
        weights = self.check(world, run)
        accumulation = self.accumulation_steps(world.size)
        counts = self.model.parameter_counts()  # of the whole model, while it is in one place
        flops = self.model.flops_per_token(self.data.sequence_length)
        parallel = self.setup_model(world)
        optimizer = self.optimizer(parallel.model.named_parameters())
        peaks = [group["lr"] for group in optimizer.param_groups]
        resumed = self.checkpointer.load_latest(run, world, parallel.model, optimizer)
        if resumed is None and weights is not None:
            weights.load(parallel.model)
        del weights  # or its files would stay open
        progress = resumed or Progress()
        if progress.step and progress.text != self.data.digest and world.is_main:
            log.warning("the text is not that of the checkpoint: resuming on other samples")
        progress.text = self.data.digest
        with contextlib.ExitStack() as until_the_end:  # of training, or what interrupts it
            opened = until_the_end.enter_context
            collect_garbage = opened(self.garbage_collection.scheduled())
            batches = opened(self.batches(progress, accumulation, parallel.layout))
            profiler = opened(self.profiling.open(run, parallel.layout, step=progress.step))
            parallel.phase = profiler.enter
            self.metrics.open(
                run,
                world,
                step=progress.step,
                steps=self.steps,
                flops=flops,
                clock=profiler.clock,
            )
            opened(contextlib.closing(self.metrics))  # rows and terminal are whole
            compilations = Compilations() if self.parallelizer.compile is not None else None
            if world.is_main:
                self._describe(parallel.layout, counts, progress)
            while progress.step < self.steps:
                profiler.before(progress.step + 1)
                factor = self.schedule(progress.step, self.steps)
                for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                    group["lr"] = peak * factor
                parallel.phase("data")
                row = self.train_step(optimizer, next(batches), parallel)
                if compilations is not None:  # the second step may find what the first has changed
                    row["compilations"] = compilations.after("training step", settled=2)

                progress.step += 1
                progress.samples += self.global_batch_size
                tokens = self.global_batch_size * self.data.sequence_length
                progress.tokens += tokens
                row = {"step": progress.step, **row, **learning_rates(optimizer)}
                row["tokens"] = progress.tokens
                if profiler.is_due(progress.step):
                    with self.metrics.paused():
                        row |= profiler.write(progress.step)
                if self.evaluation.is_due(progress.step, self.steps):
                    with self.metrics.paused():
                        row |= self.evaluate(parallel)
                    if compilations is not None:
                        row["compilations"] = compilations.after("evaluation", settled=1)
                self.metrics.record(row, tokens=tokens)
                if self.checkpointer.is_due(progress.step, self.steps):
                    # A checkpoint promises that every earlier step has its row.
                    self.metrics.flush()
                    with self.metrics.paused():
                        self.checkpointer.save(run, world, parallel.model, optimizer, progress)
                self.metrics.check()
                collect_garbage(progress.step)
        self._show_sample(parallel)
        return progress

    def train_step(
        self, optimizer: torch.optim.Optimizer, microbatches: list[Batch], parallel: ParallelModel
    ) -> dict[str, torch.Tensor]:
        """One optimizer step; returns global mean losses, gradient norm, and what experts had to
        do, on the device."""
        batches = [parallel.shard(batch) for batch in microbatches]
        parallel.phase("other")
        # Counted before the first backward pass: each microbatch weighs by its own tokens.
        tokens = sum((b.labels_BL != IGNORED).sum() for b in batches)
        global_tokens = parallel.layout.sum(tokens.to(torch.float32))

        def mean(
            head: torch.nn.Module, x_BLD: torch.Tensor, labels_BL: torch.Tensor
        ) -> torch.Tensor:
            return self.loss(head, x_BLD, labels_BL) / global_tokens

        losses = parallel.forward_backward(batches, mean)
        parallel.phase("optimizer")
        norm = parallel.clip_gradients(self.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        balance = parallel.balance()
        parallel.phase("other")
        return {**losses, "grad_norm": norm, **balance}

    def evaluate(self, parallel: ParallelModel) -> dict[str, float]:
        """Validation loss and bits per byte."""
        return self.evaluation.run(parallel, self.loss, self.data)

    def batches(
        self, progress: Progress, accumulation: int, layout: Layout
    ) -> contextlib.AbstractContextManager[Iterator[list[Batch]]]:
        """The microbatches of each step that is left, read ahead of it."""

        def read(first: int) -> list[Batch]:
            return self.microbatches(Progress(samples=first), accumulation, layout)

        size, first = self.global_batch_size, progress.samples
        samples = range(first, first + (self.steps - progress.step) * size, size)
        return self.loader.open(read, samples, layout.world.device)

    def microbatches(self, progress: Progress, accumulation: int, layout: Layout) -> list[Batch]:
        """This rank's samples of the next global batch, which are numbered over all ranks."""
        share = self.global_batch_size // layout.data_size
        first = progress.samples + layout.data_rank * share
        size = share // accumulation
        starts = range(first, first + share, size)
        return [self.data.train_batch(range(s, s + size), seed=self.seed) for s in starts]

    def local_batch(self, ranks: int) -> int:
        """Sequences that a rank of so many computes at a time."""
        return self.local_batch_size or max(self.global_batch_size // self._readers(ranks), 1)

    def accumulation_steps(self, ranks: int) -> int:
        """Local batches of one rank per optimizer step: global / (local x data-parallel ranks)."""
        return self.global_batch_size // (self.local_batch(ranks) * self._readers(ranks))

    def _readers(self, ranks: int) -> int:
        """Ranks that read different samples."""
        sizes = self.parallelizer.mesh.sizes(ranks)
        return sizes["dp_replicate"] * sizes["dp_shard"]

    def check_ranks(self, ranks: int) -> None:
        """Checks whether batch and model can be divided among so many ranks.

        Raises:
            UsageError: they cannot; the message has every reason.
        """
        mesh, asked, found = self.parallelizer.mesh, ranks, []
        try:
            mesh.sizes(ranks)
        except ComponentError as error:  # the rest is wrong on any number of ranks
            found.append(str(error))
            ranks = mesh.least
            if mesh.problems(ranks):
                raise UsageError(f"on {asked} ranks: {error}") from error
        readers, local = self._readers(ranks), self.local_batch(ranks)
        plan = self.parallelizer.plan(
            ranks,
            local_batch=local,
            sequence_length=self.data.sequence_length,
            mask_documents=self.data.mask_documents,
            data=self.data,
            trainer=self,
        )
        found += dict.fromkeys(map(str, self.parallelizer.problems(self.model, plan)))
        if self.global_batch_size % (local * readers):
            found.append(
                f"global_batch_size={self.global_batch_size} is not a multiple of local batch "
                f"{local} x {readers} data-parallel ranks = {local * readers}; set "
                f"global_batch_size to a multiple of {local * readers}, or another "
                "local_batch_size"
            )
        if found:
            reasons = f" {found[0]}" if len(found) == 1 else "\n  - ".join(["", *found])
            raise UsageError(f"on {asked} ranks:{reasons}" if asked > 1 else reasons.lstrip())

    def check_device(self, kind: str) -> None:
        """Checks whether a device of this kind can train the run.

        Raises:
            UsageError: it cannot.
        """
        check_device(self.model, self.parallelizer, kind)
        self.profiling.check_device(kind)

    def check_optimizer(self) -> None:
        """Checks the optimizer's arguments, and its selectors on the whole model.

        Raises:
            UsageError: it refuses an argument, or a selector selects nothing.
        """
        with on_behalf_of(self.optimizer):
            require_matches(self.optimizer(self.model.named_parameters()))

    def check(self, world: World, run: RunDirectory | None = None) -> "Pretrained | None":
        """Makes the text ready on every rank, and checks what only processes and files can tell.

        Args:
            run: where training would go on, or begin.

        Returns:
            The initial weights, if there are some and `run` has no checkpoint to go on from.

        Raises:
            UsageError: the text cannot be read, the tokenizer has more ids than the model, the
                global batch does not divide, the optimizer refuses its arguments, or the initial
                weights are of another model.
        """
        self.check_ranks(world.size)
        check_device(self.model, self.parallelizer, world.device.type)
        if run is not None:
            self.profiling.check_device(world.device.type)
        size, rows = self.data.tokenizer.vocab_size, self.model.vocab_size
        if size > rows:
            raise UsageError(
                f"data.tokenizer has {size} ids, the model's vocab_size is {rows}: expected at "
                f"least as many; use --config='tag:VocabSize={size}' after the tokenizer"
            )
        self.check_optimizer()
        self.data.setup()
        if run is None or self.initial_weights is None or self.checkpointer.latest(run):
            return None
        from nanigpt.models.huggingface.reader import Pretrained

        try:
            return Pretrained(self.initial_weights, self.model)
        except UsageError as error:
            raise error.within("initial_weights") from error

    def setup_model(self, world: World) -> ParallelModel:
        """Splits the model, gives it memory, fills it; in this order no rank holds it whole."""
        compile = self.parallelizer.compile
        # Of a model that is compiled as a whole, the loss is a part.
        alone = compile is not None and compile.loss and compile.scope == "blocks"
        if alone and isinstance(self.loss, LinearCrossEntropy):
            self.loss.compile(compile.function)
        parallel = self.parallelizer.parallelize(
            self.model,
            self.parallelizer.mesh.layout(world),
            local_batch=self.local_batch(world.size),
        )
        # Shards that are offloaded are copied to the device when they are used.
        offloaded = self.parallelizer.fsdp.cpu_offload and world.size > 1
        materialize(parallel.model, world.device, parameters="cpu" if offloaded else None)
        initialize(parallel.model, seed=self.seed)
        return parallel

    def restore(self, run: RunDirectory, world: World) -> tuple[ParallelModel, Progress]:
        """The model of the newest checkpoint, to evaluate or sample.

        Raises:
            UsageError: the run has no checkpoint yet.
        """
        parallel = self.setup_model(world)
        progress = self.checkpointer.load_latest(run, world, parallel.model)
        if progress is None:
            raise UsageError(f"{run.path} has no checkpoint yet; train it first")
        return parallel, progress

    def _describe(self, layout: Layout, counts: ParameterCounts, progress: Progress) -> None:
        show, world = self.metrics.console.print, layout.world
        ranks = f"{world.size} x {world.device.type}" + (f" ({layout})" if world.size > 1 else "")
        show(
            f"{counts} on {ranks}, "
            f"{self.data.n_tokens('train'):,} training tokens, "
            f"{self.global_batch_size} x {self.data.sequence_length} tokens per step"
        )
        if progress.step >= self.steps:
            show(f"already at step {progress.step} of {self.steps}: nothing to train")
        elif progress.step:
            show(f"resuming after step {progress.step}")
        elif self.initial_weights is not None:
            show(f"weights of {self.initial_weights}")

    def _show_sample(self, parallel: ParallelModel) -> None:
        text = self.sampler.run(parallel.model, self.data.tokenizer, shorten=True)
        if parallel.layout.world.is_main:
            print(f"--- sample of {self.sampler.prompt!r}\n{text}\n---", flush=True)
