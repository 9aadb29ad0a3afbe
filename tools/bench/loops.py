"""Loops to compare: our Trainer, the Trainer of transformers, and a bare loop.

All train the same Llama from the same weights on the same batches, with AdamW and clipped
gradients, in float32. `large` has 6 M parameters and 8 x 256 tokens. A step of `small` takes a few
milliseconds.
"""

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import harness

WARM_UP = 3  # steps that are not measured
FOLDER = "NANIGPT_BENCH"  # environment variable with the folder of weights and batches
LARGE = ["tag:GlobalBatchSize=8", "tag:SequenceLength=256"]
SMALL = [
    "fiddler:debug_scale",
    "tag:GlobalBatchSize=1",
    "tag:SequenceLength=32",
    "tag:VocabSize=512",
    "set:task.loss=@cross_entropy()",  # like the bare loops, because the loss is not compared here
]
STEPS = {"large": 4, "small": 600}
LOGGED = 7  # steps whose mean loss the Trainer of transformers logs at a time

AfterStep = Callable[..., None]  # takes the step's loss, if there is one for each step


def config(size: str):
    """Return a run of our Trainer that only trains."""
    from nanigpt.config.compose.flag import compose

    cfg = compose(["config:llama3_debug", *(LARGE if size == "large" else SMALL)])
    # One step more than is measured, since the last step is followed by a validation.
    cfg.steps = WARM_UP + STEPS[size] + 1
    cfg.schedule.warmup_steps = WARM_UP
    cfg.evaluations["val"].interval = cfg.checkpointer.interval = 10**9
    cfg.evaluations["val"].n_samples = 1
    cfg.task.sampler.max_new_tokens = 1
    return cfg


def prepare(folder: Path, size: str) -> None:
    """Write the initial weights in the format of transformers, and the batches of the run."""
    import torch

    from nanigpt.config.check.build import build
    from nanigpt.models.huggingface.writer import save_pretrained
    from nanigpt.models.init import initialize, materialize

    trainer = build(config(size))
    materialize(trainer.model, "cpu")
    initialize(trainer.model, seed=trainer.seed)
    save_pretrained(trainer.model, folder / "weights")
    trainer.data.setup()
    size = trainer.global_batch_size
    batches = [
        trainer.data.train_batch(range(step * size, (step + 1) * size), seed=trainer.seed)
        for step in range(trainer.steps)
    ]
    tokens = torch.stack([batch.tokens_BL for batch in batches])
    labels = torch.stack([batch.labels_BL for batch in batches])
    torch.save({"tokens": tokens, "labels": labels}, folder / "batches.pt")


def measure(
    script: str, variants: Iterable[str], size: str, *, repetitions: int
) -> dict[str, harness.Figures]:
    """Measure variants as `harness.measure` does, after preparing their weights and batches."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ[FOLDER] = folder
        prepare(Path(folder), size)
        return harness.measure(script, variants, repetitions=repetitions)


def ours(size: str, after_step: AfterStep) -> None:
    """Train with our Trainer, including data, schedule and metrics."""
    from nanigpt.config.check.build import build
    from nanigpt.parallel.world import start_world
    from nanigpt.training.loop import rows
    from nanigpt.training.run_directory import RunDirectory
    from nanigpt.training.setup import resume

    trainer = build(config(size))
    with tempfile.TemporaryDirectory() as path:
        prepared = trainer.prepare(start_world("cpu"), RunDirectory(Path(path)))
        for row in rows(resume(prepared), prepared):
            after_step(row["loss"])


def bare(size: str, *, own_model: bool) -> Iterator:
    """Train in the shortest loop, and yield each step's loss.

    Args:
        size: `large` or `small`.
        own_model: Use our modules, not LlamaForCausalLM of transformers.
    """
    import torch

    from nanigpt.optim.schedule import Cosine

    folder = Path(os.environ[FOLDER])
    batches = torch.load(folder / "batches.pt")
    if own_model:
        from nanigpt.config.check.build import build
        from nanigpt.models.init import initialize, materialize

        model = build(config(size).model)
        materialize(model, "cpu")
        initialize(model, seed=0)
    else:
        from transformers import LlamaForCausalLM

        model = LlamaForCausalLM.from_pretrained(folder / "weights", dtype=torch.float32)
    model.train()
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), fused=True)
    schedule = Cosine(warmup_steps=WARM_UP)
    for step, (tokens, labels) in enumerate(zip(*batches.values(), strict=True)):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * schedule(step, len(batches["tokens"]))
        out = model(tokens)
        logits = out if own_model else out.logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        del out, logits
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield loss.detach()


def trainer_of_transformers(size: str, after_step: AfterStep, after_log: AfterStep) -> None:
    """Train with the Trainer of transformers on its Llama, in the order of our samples."""
    import torch
    from transformers import (
        LlamaForCausalLM,
        Trainer,
        TrainerCallback,
        TrainingArguments,
        default_data_collator,
    )

    folder = Path(os.environ[FOLDER])
    batches = torch.load(folder / "batches.pt")

    class Steps(TrainerCallback):
        def on_step_end(self, *_, **__):
            after_step()

        def on_log(self, args, state, control, logs=None, **__):
            if "loss" in logs:
                after_log(logs["loss"])

    tokens, labels = (x.flatten(0, 1) for x in batches.values())
    rows = [
        {"input_ids": t, "labels": y, "shift_labels": y}
        for t, y in zip(tokens, labels, strict=True)
    ]
    with tempfile.TemporaryDirectory() as path:
        arguments = TrainingArguments(
            output_dir=path,
            max_steps=len(batches["tokens"]),
            per_device_train_batch_size=batches["tokens"].shape[1],
            learning_rate=1e-3,
            lr_scheduler_type="cosine",
            warmup_steps=WARM_UP,
            weight_decay=0.1,
            adam_beta2=0.95,
            max_grad_norm=1.0,
            optim="adamw_torch_fused",
            logging_steps=LOGGED,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            remove_unused_columns=False,
        )
        model = LlamaForCausalLM.from_pretrained(folder / "weights", dtype=torch.float32)

        class InOrder(Trainer):
            def _get_train_sampler(self, *_):
                return torch.utils.data.SequentialSampler(self.train_dataset)

        trainer = InOrder(
            model=model,
            args=arguments,
            train_dataset=rows,
            data_collator=default_data_collator,
            callbacks=[Steps()],
        )
        trainer.train()
