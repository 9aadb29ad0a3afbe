"""Run on several ranks by test_parity.py: trains every case against one process.

Usage: torchrun --nproc-per-node=4 -m tests.parallel.matrix DEVICE REFERENCES.pt RESULTS CASE ...
"""

import faulthandler
import json
import sys
import time
import traceback
from pathlib import Path

import fiddle as fdl
import numpy as np
import torch
from torch.distributed.tensor import DTensor

from experiments import parts
from experiments.deepseek import deepseek_v3_model
from experiments.llama3 import llama3_model
from experiments.pretraining import pretraining
from experiments.qwen3 import qwen3_model
from nanigpt.config.build import build
from nanigpt.config.flag import compose
from nanigpt.models.attention_extras import AttentionSink, AttentionTemperature
from nanigpt.models.init import TruncatedNormal
from nanigpt.parallel.world import World, start_world, stop_world
from nanigpt.training.checkpoint import Progress

STEPS = 5
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

RECOMPUTE = "tag:ActivationCheckpointing=full"
COMPILE = "set:parallelizer.compile=@compile(backend='aot_eager')"
BF16 = "tag:ComputeDType=bfloat16"

# What runs are compared with: the same on one process. A case is of the family that it begins with.
FAMILIES: dict[str, list[str]] = {
    "plain": [],
    "tied": [],  # embeddings; see debug_run
    "documents": ["set:data.mask_documents=True", "set:data.corpus.path={folder}/short.jsonl"],
    "bf16": [BF16, RECOMPUTE],
    "qwen3": [],  # norms of heads, and heads together wider than the model
    "moe": [],  # biases, a shared expert, groups, balancing; see mixtures
    "local": [],  # windows, chunks, sinks, a layer without RoPE; see local_attention
    "latent": [],  # multi-head latent attention; see latent_model
}

# Relative to one process; by default 1e-5 of the loss, and 1e-4 of every gradient.
BOUNDS = {
    "moe": {"gradient": 1e-5},
    # Sums of 8-bit mantissas in another order; Adam carries the difference on from step to step.
    "bf16": {"loss": 1e-2, "gradient": 0.25},
}

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
        "pp2 recompute": ["fiddler:pipeline(2, 'Interleaved1F1B', 4)", RECOMPUTE],
        "pp2 ZBVZeroBubble compile": ["fiddler:pipeline(2, 'ZBVZeroBubble', 4)", COMPILE],
        "bf16 fsdp2 recompute compile": ["fiddler:fsdp(2)", COMPILE],
        "qwen3 tp2 no sp": [
            "fiddler:tensor_parallel(2)",
            "set:parallelizer.tensor.sequence_parallel=False",
        ],
        "qwen3 tp2 recompute compile": ["fiddler:tensor_parallel(2)", RECOMPUTE, COMPILE],
        "qwen3 cp2 ring": ["fiddler:context_parallel(2, 'ring')"],
        "moe fsdp2": ["fiddler:fsdp(2)"],
        "moe ep2": ["fiddler:expert_parallel(2)"],
        "moe ep2 cp2": ["fiddler:expert_parallel(2)", "fiddler:context_parallel(2)"],
        "moe ep2 recompute compile": ["fiddler:expert_parallel(2)", RECOMPUTE, COMPILE],
        "moe tp2": ["fiddler:tensor_parallel(2)"],
        "moe tp2 no sp": [
            "fiddler:tensor_parallel(2)",
            "set:parallelizer.tensor.sequence_parallel=False",
        ],
        "moe pp2": ["fiddler:pipeline(2, 'Interleaved1F1B', 4)"],
        "local tp2": ["fiddler:tensor_parallel(2)"],
        "local cp2": ["fiddler:context_parallel(2)"],
        "local cp2 ulysses": ["fiddler:context_parallel(2, 'ulysses')"],
        "latent tp2": ["fiddler:tensor_parallel(2)"],
        "latent tp2 no sp recompute compile": [
            "fiddler:tensor_parallel(2)",
            "set:parallelizer.tensor.sequence_parallel=False",
            RECOMPUTE,
            COMPILE,
        ],
        "latent cp2": ["fiddler:context_parallel(2)"],
        "latent cp2 ring": ["fiddler:context_parallel(2, 'ring')"],
        "latent cp2 ulysses": ["fiddler:context_parallel(2, 'ulysses')"],
        "latent pp2 1F1B": ["fiddler:pipeline(2, '1F1B', 4)"],
        "local pp2": ["fiddler:pipeline(2, 'Interleaved1F1B', 4)"],
    },
    4: {
        "hsdp2x2": ["fiddler:hsdp(2)"],
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
        "qwen3 tp2 fsdp2": ["fiddler:tensor_parallel(2)"],
        "moe ep4": ["fiddler:expert_parallel(4)"],
        "moe ep2 fsdp2": ["fiddler:expert_parallel(2)"],
        "moe ep2 hsdp2": ["fiddler:expert_parallel(2)", "fiddler:hsdp(2)"],
        "moe ep2 tp2": ["fiddler:expert_parallel(2)", "fiddler:tensor_parallel(2)"],
        "moe ep2 pp2": ["fiddler:expert_parallel(2)", "fiddler:pipeline(2, '1F1B', 2)"],
        "latent tp2 fsdp2": ["fiddler:tensor_parallel(2)"],
        "local tp2 fsdp2": ["fiddler:tensor_parallel(2)"],
        "local cp2 ulysses tp2": [
            "fiddler:context_parallel(2, 'ulysses')",
            "fiddler:tensor_parallel(2)",
        ],
        "local pp4": ["fiddler:pipeline(4, '1F1B', 4)"],
    },
    8: {
        "moe ep2 fsdp2 tp2": ["fiddler:expert_parallel(2)", "fiddler:tensor_parallel(2)"],
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


def family(case: str) -> str:
    return case.split()[0] if case.split()[0] in FAMILIES else "plain"


def debug_run(case: str, settings: list[str], folder: Path) -> fdl.Config:
    """Four layers with grouped queries; every optimizer step has two local batches."""
    sizes = {"dim": 32, "n_layers": 4, "n_heads": 8, "n_kv_heads": 4, "hidden_dim": 64}
    more = {"vocab_size": 512, "sequence_length": 64, "compute_dtype": torch.float32}
    if family(case) == "qwen3":
        model = qwen3_model(**sizes, **more, head_dim=8)
    elif family(case) == "latent":
        model = latent_model(**more)
    else:
        model = llama3_model(**sizes, **more, tied=family(case) == "tied")
    if family(case) == "local":
        local_attention(model)
    if family(case) == "moe":
        mixtures(model)
    cfg = pretraining(
        model, lr=1e-3, global_batch_size=8, steps=STEPS, warmup_steps=1, sequence_length=32
    )
    if family(case) == "moe":
        # Of all choices of experts in the run, the closest is one of scores 1e-4 apart: with most
        # seeds there is one that rounding decides.
        cfg.seed = 35
    cfg.max_grad_norm = 1e9  # clipping would hide a wrong scale
    cfg.evaluation.n_sequences = 6
    cfg.sampler.max_new_tokens = 6
    common = [setting.format(folder=folder) for setting in FAMILIES[family(case)]]
    return compose([*common, *settings], cfg)


def latent_model(**more: object) -> fdl.Config:
    """Every other layer makes queries of a latent; values are narrower than keys."""
    model, direct = (
        deepseek_v3_model(
            dim=32,
            n_layers=4,
            n_dense_layers=4,
            n_heads=8,
            hidden_dim=64,
            q_lora_rank=q_lora_rank,
            kv_lora_rank=16,
            nope_head_dim=8,
            rope_head_dim=4,
            v_head_dim=6,
            yarn_factor=4.0,
            original_max_positions=16,
            **more,
        )
        for q_lora_rank in (24, None)
    )
    for layer, other in zip(model.layers[1::2], direct.layers[1::2], strict=True):
        other.attention.rope = layer.attention.rope
        layer.attention = other.attention
    return model


def local_attention(model: fdl.Config) -> None:
    """Every layer differs; sequences have 32 tokens."""
    for layer in model.layers:
        layer.attention.sink = fdl.Config(
            AttentionSink, n_heads=8, initializer=fdl.Config(TruncatedNormal, std=1.0)
        )
    window, chunk, global_, both = (layer.attention for layer in model.layers)
    window.window = 5
    chunk.chunk = 12
    global_.rope = None
    global_.temperature = fdl.Config(AttentionTemperature, scale=1.0, floor_scale=4)
    both.window, both.chunk = 11, 16


def mixtures(model: fdl.Config) -> None:
    """All layers but the first."""
    for layer in model.layers[1:]:
        layer.feed_forward = parts.mixture_of_experts(
            dim=32,
            n_experts=8,
            top_k=3,
            hidden_dim=16,
            output_scale=0.5,
            shared_dim=24,
            experts={"bias": fdl.Config(TruncatedNormal, std=0.1)},
            scores="sigmoid",
            normalize=True,
            scale=2.0,
            n_groups=4,
            top_groups=2,
            bias=fdl.Config(TruncatedNormal, std=0.1),
            balance_rate=0.01,
        )


def train(cfg: fdl.Config, world: World) -> dict:
    """Losses, gradient norms, and the whole gradients of this rank's parameters, per step."""
    trainer = build(cfg)
    sizes = trainer.parallelizer.mesh.sizes(world.size)
    trainer.local_batch_size = 8 // (sizes["dp_replicate"] * sizes["dp_shard"]) // 2
    trainer.check(world)
    parallel = trainer.setup_model(world)
    optimizer = trainer.optimizer(parallel.model.named_parameters())
    seen = {
        "loss": [],
        "grad_norm": [],
        "load": [],
        "gradients": [],
        "initial": whole(parallel.model),
    }

    def look(*_: object) -> None:
        seen["gradients"].append(
            {n: full(p.grad).clone() for n, p in parallel.model.named_parameters()}
        )

    optimizer.register_step_pre_hook(look)
    progress = Progress()
    for _ in range(STEPS):
        microbatches = trainer.microbatches(progress, 2, parallel.layout)
        row = trainer.train_step(optimizer, microbatches, parallel)
        progress.samples += trainer.global_batch_size
        for key in ("loss", "grad_norm"):
            seen[key].append(row[key].item())
        seen["load"].append({k: v.tolist() for k, v in row.items() if k not in seen})
    seen["evaluation"] = trainer.evaluate(parallel)["val_loss"]
    seen["text"] = trainer.sampler.run(parallel.model, trainer.data.tokenizer, shorten=True)
    return seen


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
    for step in range(STEPS):
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
    torch.save({name: train(debug_run(name, [], folder), world) for name in FAMILIES}, path)
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
            compare(train(cfg, world), expected[family(name)], **bounds)
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
