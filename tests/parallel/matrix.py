"""Run on several ranks by test_parity.py: trains every case against one process.

Usage: torchrun --nproc-per-node=4 -m tests.parallel.matrix DEVICE REFERENCES.pt RESULTS CASE ...
"""

import faulthandler
import itertools
import json
import random
import sys
import time
import traceback
from pathlib import Path

import fiddle as fdl
import numpy as np
import torch
from torch.distributed.tensor import DTensor

from nanigpt.config.check.build import build
from nanigpt.models.embedding import TiedHead
from nanigpt.parallel.world import World, start_world, stop_world
from nanigpt.training.loop import evaluate
from nanigpt.training.loop import steps as steps_of
from nanigpt.training.setup import new_session
from tests.parallel.families import FAMILIES, RECOMPUTE, debug_run, family, steps

SECONDS_PER_CASE = 100

SCHEDULES = (
    "GPipe",
    "1F1B",
    "Interleaved1F1B",
    "LoopedBFS",
    "InterleavedZeroBubble",
    "ZBVZeroBubble",
    "DualPipeV",
)

NO_SP = "set:parallelizer.tensor.sequence_parallel=False"
SELECTIVE = "tag:ActivationCheckpointing=selective"
COMPILE = "set:parallelizer.compile=@compile(backend='aot_eager')"

# Relative to one process; by default 1e-5 of the loss, and 1e-4 of every gradient.
BOUNDS = {
    "experts": {"gradient": 1e-5},
    # A sum in another order may round to another number of 8 bits.
    "frozenfloat8": {"loss": 2e-3, "gradient": 0.1},
    # Sums of 8-bit mantissas in another order; Adam carries the difference on from step to step.
    "bf16": {"loss": 1e-2, "gradient": 0.25},
}

# These take long, and are left to the deeper tier.
DEEP = (
    *("pp2 ZBVZeroBubble compile", "bf16 tp2 fsdp2 recompute compile", "hsdp2 cp2 tp2"),
    *("frozen tp2 selective compile", "pointwise fsdp2 recompute compile", "whole pp2 tp2"),
    *("tied tp2 fsdp2", "tied pp2 fsdp2", "tied pp2 cp2 tp2"),
    *("local tp2 recompute compile", "local tp2 fsdp2", "local cp2 ulysses tp2", "local pp4"),
    *("experts ep2 selective compile", "experts pp2 InterleavedZeroBubble recompute"),
    "pp2 ZBVZeroBubble selective compile",
    *("learned tp2 recompute compile", "learned tp2 no sp", "learned cp2 ulysses"),
    "dropout tp2 no sp",
    *("experts tp2 recompute compile", "experts ep2 hsdp2", "experts ep2 pp2"),
    *("experts ep2 fsdp2 tp2", "ahead tp2 no sp", "ahead tp2 fsdp2"),
)

# Ranks -> case -> fiddlers and settings.
CASES: dict[int, dict[str, list[str]]] = {
    2: {
        "fsdp2": ["fiddler:fsdp(2)"],
        "fsdp2 always": ["fiddler:fsdp(2, 'always')", "set:parallelizer.fsdp.prefetch=1"],
        "fsdp2 offload": ["set:parallelizer.fsdp.cpu_offload=True"],
        "tied fsdp2": [],
        "ddp2": ["fiddler:hsdp(2)"],
        "tp2": ["fiddler:tensor_parallel(2)"],
        "tied tp2": ["fiddler:tensor_parallel(2)"],
        "tp2 no sp": [
            "fiddler:tensor_parallel(2)",
            "set:parallelizer.tensor.sequence_parallel=False",
            "set:parallelizer.tensor.loss_parallel=False",
        ],
        "cp2": ["fiddler:context_parallel(2)"],
        "cp2 ring": ["fiddler:context_parallel(2, 'ring')"],
        "cp2 ulysses": ["fiddler:context_parallel(2, 'ulysses')"],
        **{f"pp2 {name}": [f"fiddler:pipeline(2, '{name}', 4)"] for name in SCHEDULES},
        "pp2 CSV": [
            "fiddler:pipeline(2, 'CSV', 4)",
            "set:parallelizer.pipeline.csv=tests/parallel/schedule.csv",
        ],
        "tied pp2 1F1B": ["fiddler:pipeline(2, '1F1B', 4)"],
        "tied pp2 ZBVZeroBubble": ["fiddler:pipeline(2, 'ZBVZeroBubble', 4)"],
        "documents cp2": ["fiddler:context_parallel(2)"],
        "documents cp2 ulysses": ["fiddler:context_parallel(2, 'ulysses')"],
        "documents pp2": ["fiddler:pipeline(2, '1F1B', 4)"],
        "fsdp2 compile": ["fiddler:fsdp(2)", COMPILE],
        "tp2 recompute compile": ["fiddler:tensor_parallel(2)", RECOMPUTE, COMPILE],
        "tp2 selective compile": [
            "fiddler:tensor_parallel(2)",
            SELECTIVE,
            COMPILE,
            "set:parallelizer.recomputation.recomputed=['layers[*].attention.wv']",
        ],
        "experts ep2 selective": ["fiddler:expert_parallel(2)", SELECTIVE],
        "experts ep2 selective compile": ["fiddler:expert_parallel(2)", SELECTIVE, COMPILE],
        "experts pp2 InterleavedZeroBubble recompute": [
            "fiddler:pipeline(2, 'InterleavedZeroBubble', 4)",
            RECOMPUTE,
        ],
        "pp2 ZBVZeroBubble selective compile": [
            "fiddler:pipeline(2, 'ZBVZeroBubble', 4)",
            SELECTIVE,
            COMPILE,
        ],
        "pp2 recompute": ["fiddler:pipeline(2, 'Interleaved1F1B', 4)", RECOMPUTE],
        "pp2 ZBVZeroBubble compile": ["fiddler:pipeline(2, 'ZBVZeroBubble', 4)", COMPILE],
        "bf16 fsdp2 recompute compile": ["fiddler:fsdp(2)", COMPILE],
        "frozen fsdp2": ["fiddler:fsdp(2)"],
        "frozen tp2": ["fiddler:tensor_parallel(2)"],
        "frozen cp2": ["fiddler:context_parallel(2)"],
        "frozen tp2 selective compile": ["fiddler:tensor_parallel(2)", SELECTIVE, COMPILE],
        "frozen pp2 ZBVZeroBubble": ["fiddler:pipeline(2, 'ZBVZeroBubble', 4)"],
        "frozen pp2 1F1B recompute": ["fiddler:pipeline(2, '1F1B', 4)", RECOMPUTE],
        "frozenfloat8 tp2": ["fiddler:tensor_parallel(2)"],
        "frozenexperts ep2": ["fiddler:expert_parallel(2)"],
        "frozenexperts pp2 1F1B": ["fiddler:pipeline(2, '1F1B', 4)"],
        "frozenexperts tp2": ["fiddler:tensor_parallel(2)"],
        "pointwise fsdp2": ["fiddler:fsdp(2)"],
        "pointwise pp2 1F1B": ["fiddler:pipeline(2, '1F1B', 4)"],
        "pointwise tp2": ["fiddler:tensor_parallel(2)"],
        "pointwise tp2 no sp": ["fiddler:tensor_parallel(2)", NO_SP],
        "pointwise fsdp2 recompute compile": ["fiddler:fsdp(2)", RECOMPUTE, COMPILE],
        "whole fsdp2": ["fiddler:fsdp(2)"],
        "whole pp2 ZBVZeroBubble": ["fiddler:pipeline(2, 'ZBVZeroBubble', 4)"],
        "whole tp2": ["fiddler:tensor_parallel(2)"],
        "whole tp2 no sp": ["fiddler:tensor_parallel(2)", NO_SP],
        "local tp2 no sp": [
            "fiddler:tensor_parallel(2)",
            "set:parallelizer.tensor.sequence_parallel=False",
        ],
        "local tp2 recompute compile": ["fiddler:tensor_parallel(2)", RECOMPUTE, COMPILE],
        "ahead fsdp2": ["fiddler:fsdp(2)", "set:parallelizer.fsdp.prefetch=1"],
        "ahead tp2": ["fiddler:tensor_parallel(2)"],
        "ahead tp2 no sp": [
            "fiddler:tensor_parallel(2)",
            "set:parallelizer.tensor.sequence_parallel=False",
        ],
        "ahead ep2 recompute": ["fiddler:expert_parallel(2)", RECOMPUTE],
        "local cp2": ["fiddler:context_parallel(2)"],
        "local cp2 ulysses": ["fiddler:context_parallel(2, 'ulysses')"],
        "local pp2": ["fiddler:pipeline(2, 'Interleaved1F1B', 4)"],
        "learned fsdp2": ["fiddler:fsdp(2)"],
        "learned tp2": ["fiddler:tensor_parallel(2)"],
        "learned tp2 no sp": [
            "fiddler:tensor_parallel(2)",
            "set:parallelizer.tensor.sequence_parallel=False",
        ],
        "learned tp2 recompute compile": ["fiddler:tensor_parallel(2)", RECOMPUTE, COMPILE],
        "learned cp2": ["fiddler:context_parallel(2)"],
        "learned cp2 ulysses": ["fiddler:context_parallel(2, 'ulysses')"],
        "learned pp2": ["fiddler:pipeline(2, 'Interleaved1F1B', 4)"],
        "dropout tp2 recompute": ["fiddler:tensor_parallel(2)", RECOMPUTE],
        "dropout tp2 no sp": [
            "fiddler:tensor_parallel(2)",
            "set:parallelizer.tensor.sequence_parallel=False",
        ],
        "dropout pp2 ZBVZeroBubble selective": [
            "fiddler:pipeline(2, 'ZBVZeroBubble', 4)",
            SELECTIVE,
        ],
        "experts fsdp2": ["fiddler:fsdp(2)"],
        "experts ep2": ["fiddler:expert_parallel(2)"],
        "experts ep2 recompute compile": ["fiddler:expert_parallel(2)", RECOMPUTE, COMPILE],
        "experts ep2 cp2": ["fiddler:expert_parallel(2)", "fiddler:context_parallel(2)"],
        "experts cp2 ring": ["fiddler:context_parallel(2, 'ring')"],
        "experts cp2 ulysses": ["fiddler:context_parallel(2, 'ulysses')"],
        "experts tp2 recompute compile": ["fiddler:tensor_parallel(2)", RECOMPUTE, COMPILE],
        "experts tp2 no sp": [
            "fiddler:tensor_parallel(2)",
            "set:parallelizer.tensor.sequence_parallel=False",
        ],
        "experts pp2": ["fiddler:pipeline(2, 'Interleaved1F1B', 4)"],
    },
    4: {
        "hsdp2x2": ["fiddler:hsdp(2)"],
        "frozen tp2 fsdp2": ["fiddler:tensor_parallel(2)"],
        "pointwise tp2 fsdp2": ["fiddler:tensor_parallel(2)"],
        "whole pp2 tp2": ["fiddler:pipeline(2, '1F1B', 4)", "fiddler:tensor_parallel(2)"],
        "tp2 fsdp2": ["fiddler:tensor_parallel(2)"],
        "tied tp2 fsdp2": ["fiddler:tensor_parallel(2)"],
        "cp2 tp2": ["fiddler:context_parallel(2)", "fiddler:tensor_parallel(2)"],
        "cp4 ring": ["fiddler:context_parallel(4, 'ring')"],
        "cp2 ulysses fsdp2": ["fiddler:context_parallel(2, 'ulysses')"],
        "pp2 fsdp2": ["fiddler:pipeline(2, '1F1B', 2)"],
        "tied pp2 fsdp2": ["fiddler:pipeline(2, 'Interleaved1F1B', 2)"],
        "pp2 fsdp2 always": [
            "fiddler:pipeline(2, 'Interleaved1F1B', 2)",
            "fiddler:fsdp(2, 'always')",
        ],
        "pp2 cp2": ["fiddler:pipeline(2, 'ZBVZeroBubble', 4)", "fiddler:context_parallel(2)"],
        "bf16 tp2 fsdp2 recompute compile": ["fiddler:tensor_parallel(2)", COMPILE],
        "pp4": ["fiddler:pipeline(4, '1F1B', 4)"],
        "experts ep4": ["fiddler:expert_parallel(4)"],
        "experts ep2 fsdp2": ["fiddler:expert_parallel(2)"],
        "experts ep2 hsdp2": ["fiddler:expert_parallel(2)", "fiddler:hsdp(2)"],
        "experts ep2 tp2": ["fiddler:expert_parallel(2)", "fiddler:tensor_parallel(2)"],
        "experts ep2 pp2": ["fiddler:expert_parallel(2)", "fiddler:pipeline(2, '1F1B', 2)"],
        "ahead tp2 fsdp2": ["fiddler:tensor_parallel(2)"],
        "local tp2 fsdp2": ["fiddler:tensor_parallel(2)"],
        "local cp2 ulysses tp2": [
            "fiddler:context_parallel(2, 'ulysses')",
            "fiddler:tensor_parallel(2)",
        ],
        "local pp4": ["fiddler:pipeline(4, '1F1B', 4)"],
        # In this order one process waited for ever for groups of a set-up before.
        "windows cp2 tp2": ["fiddler:context_parallel(2)", "fiddler:tensor_parallel(2)"],
        "gptoss pp2 ZBVZeroBubble tp2 selective": [
            "fiddler:pipeline(2, 'ZBVZeroBubble', 4)",
            "fiddler:tensor_parallel(2)",
            SELECTIVE,
        ],
        "gptoss pp2 ep2 InterleavedZeroBubble recompute": [
            "fiddler:pipeline(2, 'InterleavedZeroBubble', 2)",
            "fiddler:expert_parallel(2)",
            RECOMPUTE,
        ],
        "experts pp2 DualPipeV ep2 selective": [
            "fiddler:pipeline(2, 'DualPipeV', 4)",
            "fiddler:expert_parallel(2)",
            SELECTIVE,
        ],
        "experts ep2 cp2 tp2": [
            "fiddler:expert_parallel(2)",
            "fiddler:context_parallel(2)",
            "fiddler:tensor_parallel(2)",
        ],
    },
    8: {
        "experts ep2 fsdp2 tp2": ["fiddler:expert_parallel(2)", "fiddler:tensor_parallel(2)"],
        "pp2 fsdp2 tp2": ["fiddler:pipeline(2, '1F1B', 2)", "fiddler:tensor_parallel(2)"],
        "tied pp2 cp2 tp2": [
            "fiddler:pipeline(2, 'Interleaved1F1B', 4)",
            "fiddler:context_parallel(2)",
            "fiddler:tensor_parallel(2)",
        ],
        "hsdp2 cp2 tp2": [
            "fiddler:hsdp(2)",
            "fiddler:context_parallel(2)",
            "fiddler:tensor_parallel(2)",
        ],
    },
}


def random_cases(ranks: int, number: int, seed: int) -> dict[str, list[str]]:
    """Draw meshes of `ranks` ranks at random, and a family for each."""
    draw = random.Random(seed)
    axes = {
        "dp_replicate": "fiddler:hsdp({})",
        "dp_shard": "fiddler:fsdp({})",
        "cp": "fiddler:context_parallel({})",
        "tp": "fiddler:tensor_parallel({})",
        "pp": "fiddler:pipeline({}, '1F1B', 4)",
    }
    found: dict[str, list[str]] = {}
    while len(found) < number:
        sizes = dict.fromkeys(axes, 1)
        left = ranks
        while left > 1:
            sizes[draw.choice(list(axes))] *= 2
            left //= 2
        name = draw.choice(["plain", "local", "experts", "frozen", "documents"])
        edits = [axes[axis].format(size) for axis, size in sizes.items() if size > 1]
        if name == "experts" and sizes["dp_shard"] * sizes["cp"] > 1 and draw.random() < 0.5:
            edits.append("fiddler:expert_parallel(2)")
        if draw.random() < 0.3:
            edits.append(SELECTIVE)
        if sizes["pp"] > 1 and sizes["dp_replicate"] * sizes["dp_shard"] > 1:
            edits.append("set:parallelizer.pipeline.microbatches=2")
        mesh = " ".join(f"{axis}{size}" for axis, size in sizes.items() if size > 1)
        found[f"{name} random {len(found)} {mesh}"] = edits
    return found


RANDOM = random_cases(4, 20, seed=13)
CASES[4] |= RANDOM
DEEP += tuple(RANDOM)


def train(cfg: fdl.Config, world: World, n_steps: int) -> dict:
    """Losses, gradient norms, and the whole gradients of this rank's parameters, per step."""
    trainer = build(cfg)
    sizes = trainer.parallelizer.mesh.sizes(world.size)
    share = 8 // (sizes["dp_replicate"] * sizes["dp_shard"])
    microbatches = trainer.parallelizer.pipeline.microbatches or 1
    trainer.local_batch_size = max(share // 2, microbatches)  # two local batches, if that is enough
    trainer.check(world.size, world.device.type)
    trainer.data.setup()
    trainer.schedule = lambda step, steps: 1.0  # no warm-up, so that steps differ more
    session = new_session(trainer, world)
    parallel = session.parallel
    seen = {
        "loss": [],
        "grad_norm": [],
        "load": [],
        "gradients": [],
        "initial": whole(parallel.model),
    }

    def look(*_: object) -> None:
        seen["gradients"].append(
            {
                n: full(p.grad).clone()
                for n, p in parallel.model.named_parameters()
                if p.requires_grad
            }
        )

    session.optimizer.register_step_pre_hook(look)
    for row in itertools.islice(steps_of(session), n_steps):
        for key in ("loss", "grad_norm"):
            seen[key].append(row[key].item())
        load = {k: v for k, v in row.items() if k not in seen and isinstance(v, torch.Tensor)}
        seen["load"].append({k: v.tolist() for k, v in load.items()})
    assert_aliases(parallel.model)
    seen["evaluation"] = evaluate(trainer, parallel)["val_loss"]
    seen["text"] = trainer.task.sampler.run(parallel.model, trainer.data.tokenizer, shorten=True)
    return seen


def assert_aliases(model: torch.nn.Module) -> None:
    """What was one tensor when the model was built is one tensor after all that was done to it."""
    if isinstance(model.head, TiedHead) and model.embedding is not None:
        assert model.head.weight is model.embedding.weight
    attentions = [block.attention for block in model.blocks() if block is not None]
    ropes = [getattr(attention, "rope", None) for attention in attentions]
    tables = [rope.cos_sin_2MF for rope in ropes if rope is not None]
    assert len({table.data_ptr() for table in tables}) == min(len(tables), 1)
    assert not any(table.is_meta for table in tables)


def whole(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: full(p.detach()).clone() for name, p in model.named_parameters()}


def full(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def compare(got: dict, want: dict, *, loss: float = 1e-5, gradient: float = 1e-4) -> None:
    """Names are those of the unsharded model, and on all ranks together there are all of them."""
    names = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(names, list(got["initial"]))
    assert {n for some in names for n in some} == set(want["initial"])
    for name, weight in got["initial"].items():
        assert torch.equal(weight.cpu(), want["initial"][name]), f"{name}: another initial weight"
    for step in range(len(want["loss"])):
        for key in ("loss", "grad_norm"):
            a, b = got[key][step], want[key][step]
            assert abs(a - b) <= loss * abs(b), f"step {step}: {key} {a}, expected {b}"
        if gradient <= 1e-4:
            found, load = got["load"][step], want["load"][step]
            assert found.keys() == load.keys()
            for key in load:
                assert np.allclose(found[key], load[key], rtol=1e-4), f"step {step}: {key} {found}"
        for name, mine in got["gradients"][step].items():
            expected = want["gradients"][step][name]
            error = (mine.cpu() - expected).norm() / expected.norm()
            assert error <= gradient, f"step {step}: gradient of {name} is off by {error:.2e}"
    a, b = got["evaluation"], want["evaluation"]
    assert abs(a - b) <= loss * abs(b), f"validation loss {a}, expected {b}"
    assert got["text"] == want["text"] or loss > 1e-5, "sampled another text"


def write_references(folder: Path, device: str) -> Path:
    """Every family on this process alone, and the text of short documents."""
    texts = [f"{n} is the text of document {n * n}" for n in range(400)]
    (folder / "short.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    world = start_world(device)
    path = folder / "references.pt"
    torch.save(
        {name: train(debug_run(name, [], folder), world, steps(name)) for name in FAMILIES}, path
    )
    return path


def main(device: str, references: str, results: str, *cases: str) -> None:
    faulthandler.enable()
    world = start_world(device)
    expected = torch.load(references)
    folder = Path(references).parent
    outcome = {}
    for name in cases:
        # A hanging rank prints where it is, and ends; the launcher ends the others.
        faulthandler.dump_traceback_later(SECONDS_PER_CASE, exit=True)
        torch.compiler.reset()  # or earlier cases' compilations count toward the limit
        begin = time.perf_counter()
        try:
            cfg = debug_run(name, CASES[world.size][name], folder)
            bounds = BOUNDS.get(family(name), {})
            compare(train(cfg, world, steps(name)), expected[family(name)], **bounds)
            outcome[name] = ["ok", time.perf_counter() - begin]
        except Exception:  # told with rank and case, then raised: the others may be waiting
            print(f"rank {world.rank}, case {name}\n{traceback.format_exc()}", file=sys.stderr)
            sys.stderr.flush()
            faulthandler.dump_traceback_later(1, exit=True)
            raise
        faulthandler.cancel_dump_traceback_later()
        if world.is_main:
            Path(results).write_text(json.dumps(outcome))
            print(name, outcome[name], flush=True)
    stop_world()


if __name__ == "__main__":
    main(*sys.argv[1:])
