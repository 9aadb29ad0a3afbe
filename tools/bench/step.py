"""A training step, beside a bare PyTorch loop and the Trainer of transformers.

    ./tools/run python tools/bench/step.py

All train the same Llama (6 M parameters, 8 x 256 tokens, float32) from the same weights on the same
batches with AdamW and clipped gradients. Then the same with a model whose step takes few
milliseconds, where what a framework does around the model is seen; there our modules also run in a
bare loop. Printed are CPU milliseconds of a step, of the whole process, the first steps left out.
"""

import os
import tempfile
import time
from pathlib import Path

import harness

WARM_UP = 3
FOLDER = "NANIGPT_BENCH"  # environment variable: where weights and batches are
LARGE = ["tag:GlobalBatchSize=8", "tag:SequenceLength=256"]
SMALL = [
    "fiddler:debug_scale",
    "tag:GlobalBatchSize=1",
    "tag:SequenceLength=32",
    "tag:VocabSize=512",
    "set:loss=@cross_entropy()",  # as the bare loops have: it is not the loss that is compared
]
STEPS = {"large": 4, "small": 150}
LOGGED = 7  # steps whose mean loss is shown: the variants do compute the same


def config(size: str):
    """A run of our Trainer that does nothing but train."""
    from nanigpt.config.flag import compose

    cfg = compose(["config:llama3_debug", *(LARGE if size == "large" else SMALL)])
    # One more than is measured, since the last step is validated.
    cfg.steps = WARM_UP + STEPS[size] + 1
    cfg.schedule.warmup_steps = WARM_UP
    cfg.evaluation.interval = cfg.checkpointer.interval = 10**9
    cfg.evaluation.n_sequences = 1
    cfg.sampler.max_new_tokens = 1
    return cfg


class Clock:
    """CPU milliseconds of the steps after the first ones."""

    def __init__(self, size: str):
        self.left = WARM_UP + STEPS[size]
        self.steps = 0
        self.losses = []

    def step(self, loss=None) -> None:
        """After each step; its loss may be a tensor."""
        self.steps += 1
        if loss is not None and len(self.losses) < LOGGED:
            self.losses.append(loss)
        if self.steps == WARM_UP:
            self.start = time.process_time(), time.perf_counter()
        if self.steps == self.left:
            now = time.process_time(), time.perf_counter()
            self.cpu, self.wall = (1000 * (b - a) for a, b in zip(self.start, now, strict=True))

    def figures(self) -> harness.Figures:
        n, loss = self.left - WARM_UP, sum(map(float, self.losses)) / len(self.losses)
        return {"ms": self.cpu / n, "ms of wall": self.wall / n, "loss": loss}


def prepare(folder: Path, size: str) -> None:
    """Weights as transformers reads them, and the batches of the run."""
    import torch

    from nanigpt.config.build import build
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


def ours(size: str) -> harness.Figures:
    """The Trainer, with data, schedule, metrics and all."""
    import fiddle as fdl
    from timed import TimedMetrics

    from nanigpt.config.build import build
    from nanigpt.parallel.world import start_world
    from nanigpt.training.run_directory import RunDirectory

    clock, cfg = Clock(size), config(size)
    fdl.update_callable(cfg.metrics, TimedMetrics)
    trainer = build(cfg)
    trainer.metrics.after_step = clock.step
    with tempfile.TemporaryDirectory() as path:
        trainer.run(RunDirectory(Path(path)), start_world("cpu"))
    return clock.figures()


def bare(size: str, *, own_model: bool) -> harness.Figures:
    """The shortest loop: forward, backward, clip, AdamW with both of its groups."""
    import torch

    from nanigpt.optim.schedule import Cosine

    folder = Path(os.environ[FOLDER]) / size
    batches = torch.load(folder / "batches.pt")
    if own_model:
        from nanigpt.config.build import build
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
    schedule, clock = Cosine(warmup_steps=WARM_UP), Clock(size)
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
        clock.step(loss.detach())
        if clock.steps == clock.left:
            return clock.figures()
    raise AssertionError("the batches are fewer than the steps")


def trainer_of_transformers(size: str) -> harness.Figures:
    import torch
    from transformers import (
        LlamaForCausalLM,
        Trainer,
        TrainerCallback,
        TrainingArguments,
        default_data_collator,
    )

    folder = Path(os.environ[FOLDER]) / size
    batches = torch.load(folder / "batches.pt")
    clock = Clock(size)

    class Steps(TrainerCallback):
        def on_step_end(self, *_, **__):
            clock.step()

        def on_log(self, args, state, control, logs=None, **__):
            if state.global_step == LOGGED:
                clock.losses = [logs["loss"]]

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
    return clock.figures()


VARIANTS = {
    "ours, large": lambda: ours("large"),
    "bare loop, large": lambda: bare("large", own_model=False),
    "transformers' Trainer, large": lambda: trainer_of_transformers("large"),
    "ours, small": lambda: ours("small"),
    "ours in a bare loop, small": lambda: bare("small", own_model=True),
    "bare loop, small": lambda: bare("small", own_model=False),
    "transformers' Trainer, small": lambda: trainer_of_transformers("small"),
}


def report(repetitions: int) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        os.environ[FOLDER] = folder
        for size in STEPS:
            (Path(folder) / size).mkdir()
            prepare(Path(folder) / size, size)
        found = harness.measure(__file__, VARIANTS, repetitions=repetitions)
    harness.heading("A step: Llama of 6 M parameters, 8 x 256 tokens", repetitions)
    base = found["bare loop, large"]["ms"]
    for name in [v for v in VARIANTS if v.endswith("large")]:
        ms, loss = found[name]["ms"], found[name]["loss"]
        shown = name.removesuffix(", large")
        print(f"  {shown:<24} {ms:8.1f} ms CPU  {ms / base:5.3f} x bare loop  (loss {loss:.3f})")
    harness.heading("Around a small model", repetitions)
    for name, bare_name in {
        "ours, small": "ours in a bare loop, small",
        "transformers' Trainer, small": "bare loop, small",
    }.items():
        ms, base = found[name]["ms"], found[bare_name]["ms"]
        shown = name.removesuffix(", small")
        print(f"  {shown:<24} {ms:8.2f} ms CPU, bare loop {base:.2f}: {ms - base:5.2f} ms more")
    return {"step": found}


if __name__ == "__main__":
    harness.main(__file__, VARIANTS, report)
