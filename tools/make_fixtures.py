"""Write small runs with records and checkpoints that every later version must load and resume.

tools/run python tools/make_fixtures.py NAME ...

A run trains for 8 steps and is then put back to its checkpoint of step 4. The checkpoint is packed,
because most of it is text. `expected.json` has the numbers of the steps after the checkpoint, and
the checkpoint's validation loss. Write a run when a new kind of record or checkpoint appears, and
never again: tests/records/ is about files that an older version wrote.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]  # the checkout that this file is in, whatever is installed

import fiddle as fdl  # noqa: E402
import torch  # noqa: E402

from nanigpt.config.record.file import dump  # noqa: E402
from nanigpt.experiments.deepseek import deepseek_v3_model  # noqa: E402
from nanigpt.experiments.gpt_oss import gpt_oss_model  # noqa: E402
from nanigpt.experiments.llama3 import llama3_model  # noqa: E402
from nanigpt.experiments.llama4 import llama4_model  # noqa: E402
from nanigpt.experiments.pretraining import pretraining  # noqa: E402
from nanigpt.experiments.qwen3 import qwen3_model  # noqa: E402
from tools.arithmetic import arithmetic  # noqa: E402

RUNS = Path("tests/fixtures/runs")  # relative, as is all that records hold
STEPS, STORED = 8, 4

SIZES = {
    "dim": 8,
    "n_heads": 4,
    "n_kv_heads": 2,
    "vocab_size": 260,  # bytes and a few
    "sequence_length": 64,
    "compute_dtype": torch.float32,
}
HEADS = {"head_dim": 4}


def llama3() -> fdl.Config:
    return llama3_model(**SIZES, n_layers=2, hidden_dim=32, rope_scaling_factor=8.0)


def llama3_tied() -> fdl.Config:
    return llama3_model(**SIZES, n_layers=1, hidden_dim=32, tied=True)


def llama3_wide() -> fdl.Config:
    """Return a model whose matrices are large enough for blocks of 8-bit state."""
    return llama3_model(**SIZES | {"vocab_size": 512}, n_layers=1, hidden_dim=32)


def qwen3() -> fdl.Config:
    return qwen3_model(**SIZES, **HEADS, n_layers=2, hidden_dim=32, tied=True)


def qwen3_shallow() -> fdl.Config:
    return qwen3_model(**SIZES, **HEADS, n_layers=1, hidden_dim=32)


def qwen3_moe() -> fdl.Config:
    return qwen3_model(**SIZES, **HEADS, n_layers=2, hidden_dim=8, n_experts=4, top_k=2)


def deepseek_v3() -> fdl.Config:
    sizes = {name: size for name, size in SIZES.items() if name != "n_kv_heads"}
    return deepseek_v3_model(
        **sizes,
        n_layers=3,
        n_dense_layers=1,
        hidden_dim=32,
        expert_dim=8,
        n_experts=4,
        top_k=2,
        n_shared=1,
        n_groups=2,
        top_groups=1,
        q_lora_rank=8,
        kv_lora_rank=8,
        nope_head_dim=4,
        rope_head_dim=4,
        v_head_dim=4,
        yarn_factor=4.0,
        original_max_positions=16,
    )


def llama4() -> fdl.Config:
    return llama4_model(
        **SIZES,
        **HEADS,
        n_layers=4,
        n_experts=4,
        mixture_interval=2,
        qk_norm=True,
        hidden_dim=16,
        dense_hidden_dim=32,
        chunk=12,
        rope_scaling_factor=16.0,
    )


def gpt_oss() -> fdl.Config:
    return gpt_oss_model(
        **SIZES,
        **HEADS,
        n_layers=2,
        n_experts=4,
        top_k=2,
        hidden_dim=8,
        window=12,
        original_max_positions=16,
    )


# Model, edits, processes.
FIXTURES = {
    "llama3": (llama3, [], 1),
    "qwen3": (qwen3, ["set:schedule=@warmup_stable_decay(2, 0.1)"], 1),
    "qwen3_moe": (qwen3_moe, [], 1),
    "deepseek_v3": (deepseek_v3, ["set:local_batch_size=2"], 1),
    "llama4": (llama4, [], 1),
    "gpt_oss": (gpt_oss, ["set:task.loss=@cross_entropy(1e-4)"], 1),
    "muon": (llama3, ["fiddler:muon"], 1),
    "multi_token": (qwen3_shallow, ["fiddler:multi_token(2)"], 1),
    "bfloat16": (
        llama3_tied,
        ["tag:ComputeDType=bfloat16", "tag:ActivationCheckpointing=selective"],
        1,
    ),
    "optimizer_8bit": (llama3_wide, ["fiddler:optimizer_state('8bit')"], 1),
    "optimizer_bfloat16": (
        llama3_tied,
        [
            "fiddler:optimizer_state('bfloat16')",
            "fiddler:parameter_group('*norm*', weight_decay=0.01)",
        ],
        1,
    ),
    "documents": (
        llama3_tied,
        [
            "set:data.mask_documents=True",
            "set:data.corpus.path=tests/fixtures/documents.jsonl",
            "set:metrics.log_interval=2",
        ],
        1,
    ),
    "tensor_parallel": (llama3, ["fiddler:tensor_parallel(2)"], 2),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="+", choices=FIXTURES, metavar="NAME")
    torch.set_num_threads(1)
    os.chdir(ROOT)
    for name in parser.parse_args().names:
        write(name)


def write(name: str) -> None:
    """Train one run, put it back to its checkpoint, and record what follows."""
    model, edits, processes = FIXTURES[name]
    cfg = pretraining(
        model(), lr=5e-3, global_batch_size=4, steps=STEPS, warmup_steps=2, sequence_length=32
    )
    cfg.data.corpus.path = "tests/fixtures/text.txt"
    cfg.device = "cpu"
    cfg.checkpointer.interval, cfg.checkpointer.keep = STORED, None
    cfg.evaluations["val"].n_samples = 6
    cfg.task.sampler.max_new_tokens = 2
    run, asked = RUNS / name, RUNS / f"{name}.json"
    shutil.rmtree(run, ignore_errors=True)
    RUNS.mkdir(parents=True, exist_ok=True)
    asked.write_text(dump(cfg))
    directives = [f"--config={d}" for d in (f"config_file:{asked}", *edits)]
    nanigpt("train", *directives, f"--run_dir={run}", processes=processes)
    asked.unlink()
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    after = [json.loads(line) for line in lines[STORED : STEPS - 1]]
    shutil.rmtree(run / "checkpoints" / f"step_{STEPS:08d}")
    evaluated = json.loads(nanigpt("eval", f"--run_dir={run}").splitlines()[-1])
    (run / "metrics.jsonl").write_text("".join(lines[:STORED]))
    expected = {
        "arithmetic": arithmetic(),
        "eval": evaluated,
        "rows": [{key: row[key] for key in ("step", "loss", "grad_norm")} for row in after],
    }
    (run / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    launch = json.loads((run / "launches.jsonl").read_text())
    launch["platform"] = "Linux"  # and not this machine's kernel
    (run / "launches.jsonl").write_text(json.dumps(launch) + "\n")
    with tarfile.open(run / "checkpoints.tar.xz", "w:xz") as archive:
        archive.add(run / "checkpoints", "checkpoints", filter=_of_nobody)
    shutil.rmtree(run / "checkpoints")
    shutil.rmtree(run / "tensorboard", ignore_errors=True)
    (run / ".lock").unlink()
    size = sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
    print(f"{run}: {size / 1000:.0f} kB, {evaluated}")


def _of_nobody(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    return entry


def nanigpt(*arguments: str, processes: int = 1) -> str:
    """Run a command to its end; return what it printed."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run(
        [sys.executable, *(launcher if processes > 1 else []), "-m", "nanigpt", *arguments],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return done.stdout


if __name__ == "__main__":
    main()
