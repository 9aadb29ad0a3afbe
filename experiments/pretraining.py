"""The parts of pretraining recipes that all families share, which are all parts but the model."""

from typing import Any

import fiddle as fdl
import torch

from nanigpt.data.corpus import TextCorpus
from nanigpt.data.dataset import PackedDataset
from nanigpt.data.loader import Loader
from nanigpt.data.tokenizer import ByteTokenizer
from nanigpt.experiments import nodes
from nanigpt.models.decoder import Decoder
from nanigpt.optim.adamw import adamw
from nanigpt.optim.schedule import Cosine
from nanigpt.parallel.context import ContextParallel
from nanigpt.parallel.expert import ExpertParallel
from nanigpt.parallel.fsdp import FullyShardedDataParallel
from nanigpt.parallel.mesh import Mesh
from nanigpt.parallel.parallelizer import Parallelizer
from nanigpt.parallel.pipeline import PipelineParallel
from nanigpt.parallel.remat import Recomputation
from nanigpt.parallel.tensor import TensorParallel
from nanigpt.precision.float8 import Float8
from nanigpt.tasks.cross_entropy import LinearCrossEntropy
from nanigpt.tasks.language_modeling import LanguageModeling
from nanigpt.tasks.sampler import Sampler
from nanigpt.training.checkpoint import Checkpointer
from nanigpt.training.evaluation import Evaluation
from nanigpt.training.garbage import GarbageCollection
from nanigpt.training.metrics import Metrics
from nanigpt.training.profiling import Profiling
from nanigpt.training.trackers.console import Console
from nanigpt.training.trackers.json_lines import JsonLines
from nanigpt.training.trackers.tensorboard import TensorBoard
from nanigpt.training.trainer import Trainer


def pretraining(
    model: fdl.Config[Decoder],
    *,
    lr: float,
    global_batch_size: int,
    local_batch_size: int | None = None,
    steps: int = 100_000,
    warmup_steps: int = 2000,
    sequence_length: int = 8192,
) -> fdl.Config[Trainer]:
    """Return a run of `model` on the bytes of the embedded corpus, which an edit may replace.

    It uses AdamW with betas 0.9 and 0.95, weight decay 0.1, gradients clipped at norm 1, linear
    warm-up, and cosine decay to a tenth. The model gets as many positions as a sequence has tokens,
    if it has fewer.
    """
    nodes.reach(model, sequence_length)
    data = fdl.Config(
        PackedDataset,
        corpus=fdl.Config(TextCorpus),
        tokenizer=fdl.Config(ByteTokenizer),
        sequence_length=sequence_length,
    )
    task = fdl.Config(
        LanguageModeling,
        loss=fdl.Config(LinearCrossEntropy),
        sampler=fdl.Config(Sampler),
    )
    return training(
        model,
        data,
        task,
        lr=lr,
        global_batch_size=global_batch_size,
        local_batch_size=local_batch_size,
        steps=steps,
        warmup_steps=warmup_steps,
        compute_dtype=model.embedding.compute_dtype,
    )


def training(
    model: fdl.Config[Any],
    data: fdl.Config[Any],
    task: fdl.Config[Any],
    *,
    lr: float,
    global_batch_size: int,
    local_batch_size: int | None = None,
    steps: int,
    warmup_steps: int = 0,
    compute_dtype: torch.dtype = torch.float32,
) -> fdl.Config[Trainer]:
    """Return a run of any model and task, with the optimizer and schedule of `pretraining`.

    Args:
        compute_dtype: Dtype of the model's activations.
    """
    evaluation = fdl.Config(Evaluation)
    if local_batch_size is not None:  # memory is short, here as in training
        evaluation.batch_size = local_batch_size
    return fdl.Config(
        Trainer,
        model=model,
        data=data,
        task=task,
        loader=fdl.Config(Loader),
        optimizer=fdl.Partial(adamw, lr=lr, weight_decay=0.1),
        schedule=fdl.Config(Cosine, warmup_steps=warmup_steps, final=0.1),
        parallelizer=fdl.Config(
            Parallelizer,
            mesh=fdl.Config(Mesh),
            pipeline=fdl.Config(PipelineParallel),
            fsdp=fdl.Config(FullyShardedDataParallel, param_dtype=compute_dtype),
            context=fdl.Config(ContextParallel),
            tensor=fdl.Config(TensorParallel),
            expert=fdl.Config(ExpertParallel),
            float8=fdl.Config(Float8),
            recomputation=fdl.Config(Recomputation),
        ),
        evaluations={"val": evaluation},
        checkpointer=fdl.Config(Checkpointer),
        metrics=fdl.Config(Metrics),
        trackers=[fdl.Config(kind) for kind in (Console, JsonLines, TensorBoard)],
        garbage_collection=fdl.Config(GarbageCollection),
        profiling=fdl.Config(Profiling),
        steps=steps,
        global_batch_size=global_batch_size,
        local_batch_size=local_batch_size,
    )


def debugging(
    model: fdl.Config[Decoder], *, steps: int, sequence_length: int = 128
) -> fdl.Config[Trainer]:
    """Return a run of a small model on the embedded corpus, which takes minutes on two CPU cores.

    Small batches make many steps of few tokens. A model should have twice as many positions as its
    training sequences, so that it can continue a text.
    """
    cfg = pretraining(
        model,
        lr=1e-3,
        steps=steps,
        warmup_steps=20,
        global_batch_size=4,
        sequence_length=sequence_length,
    )
    cfg.evaluations["val"].interval = 100
    cfg.evaluations["val"].n_samples = 64
    cfg.checkpointer.interval = 100
    cfg.task.sampler.prompt = "def "
    cfg.task.sampler.max_new_tokens = 120
    cfg.task.sampler.temperature = 0.6
    return cfg
