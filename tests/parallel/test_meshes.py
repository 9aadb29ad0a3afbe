"""Meshes that cannot work are refused before a process starts; those that can are laid out right."""

import itertools

import pytest
import torch

from nanigpt.cli.main import main
from nanigpt.config.check.build import build
from nanigpt.config.compose.flag import compose
from nanigpt.config.registry import recipes
from nanigpt.errors import UsageError
from nanigpt.parallel.mesh import Mesh
from tests.support import flags, tiny

# llama3_8b: 32 layers, 32 heads, 8 KV heads, 8192 tokens, global batch 512, local batch 1.
# Ranks, directives, what the message must say.
DP, TP, CP, PP, HSDP = (
    "tag:DataParallelShard={}",
    "tag:TensorParallel={}",
    "tag:ContextParallel={}",
    "tag:PipelineParallel={}",
    "tag:DataParallelReplicate={}",
)
EP = "tag:ExpertParallel={}"
ULYSSES = "set:parallelizer.context.method=ulysses"
RING = "set:parallelizer.context.method=ring"
BATCH = "tag:LocalBatchSize={}"


def pipeline(n: int, schedule: str = "1F1B", microbatches: int = 8) -> str:
    return f"fiddler:pipeline({n}, '{schedule}', {microbatches})"


CUDNN = "tag:AttentionCore=@scaled_dot_product(kernels=('cudnn', 'efficient'))"
VARLEN = "tag:AttentionCore=@varlen_attention()"

WRONG = [
    # The product of the axes is not the world.
    (8, [DP.format(4)], "expected 4 ranks for pp=1, dp_replicate=1, dp_shard=4, cp=1, tp=1, not 8"),
    (8, [DP.format(16)], "expected 16 ranks for "),
    (8, [TP.format(8), DP.format(2)], "expected 16 ranks for "),
    (8, [HSDP.format(2), DP.format(2)], "expected 4 ranks for "),
    (6, [TP.format(4)], "expected a multiple of 4 ranks for "),
    (7, [TP.format(2)], "expected a multiple of 2 ranks for "),
    (1, [TP.format(2)], "expected a multiple of 2 ranks for "),
    (4, [TP.format(8)], "expected a multiple of 8 ranks for "),
    (8, [HSDP.format(3), "tag:GlobalBatchSize=3"], "expected a multiple of 3 ranks for "),
    (8, [CP.format(16)], "expected a multiple of 16 ranks for "),
    (12, [CP.format(8)], "expected a multiple of 8 ranks for "),
    (8, [pipeline(16, microbatches=16)], "expected a multiple of 16 ranks for "),
    (10, [pipeline(4)], "expected a multiple of 4 ranks for "),
    (16, [TP.format(4), HSDP.format(3), "tag:GlobalBatchSize=3"], "expected a multiple of 12 ranks"),
    (512, [TP.format(8), pipeline(8), DP.format(4)], "expected 256 ranks for "),
    (3, [DP.format(1)], "expected 1 ranks for "),
    # Sizes that are no sizes.
    (8, [TP.format(0)], "tp=0: expected at least 1"),
    (8, [TP.format(-2)], "tp=-2: expected at least 1"),
    (8, [DP.format(0)], "dp_shard=0: expected at least 1"),
    (8, [PP.format(-3)], "pp=-3: expected at least 1"),
    (8, [TP.format(-1)], "expected -1 for at most one axis"),
    (8, [CP.format(-1), HSDP.format(-1)], "expected -1 for at most one axis"),
    (8, [TP.format("two")], "expected int"),
    (8, [TP.format(2.5)], "expected int"),
    # Heads and matrices.
    (16, [TP.format(16)], "n_kv_heads=8: expected a multiple of tp=16"),
    (3, [TP.format(3)], "n_heads=32: expected a multiple of tp=3"),
    (5, [TP.format(5)], "n_heads=32"),
    (6, [TP.format(6)], "n_kv_heads=8"),
    (64, [TP.format(64)], "n_heads=32"),
    (8, [TP.format(8), "tag:VocabSize=1003"], "model.head.out_dim=1003: expected a multiple of tp=8"),
    (8, [TP.format(8), "tag:VocabSize=1003"], "out_dim=1003: expected a multiple of tp=8"),
    (16, [TP.format(-1), DP.format(1)], "n_kv_heads=8"),
    # Sequences.
    (3, [CP.format(3)], "sequence_length=8192: expected a multiple of 2 x cp=3 x tp=1 = 6"),
    (7, [CP.format(7)], "2 x cp=7"),
    (4, [CP.format(4), "tag:SequenceLength=100"], "sequence_length=100: expected a multiple of 2 x"),
    (4, [TP.format(4), "tag:SequenceLength=102"], "sequence_length=102: expected a multiple of tp"),
    (8, [TP.format(4), CP.format(2), "tag:SequenceLength=8"], "cp=2 x tp=4 = 16"),
    (16, [CP.format(16), "tag:SequenceLength=16"], "2 x cp=16 x tp=1 = 32"),
    # Ulysses exchanges heads.
    (16, [CP.format(16), ULYSSES], "n_kv_heads=8: expected a multiple of "),
    (8, [CP.format(4), TP.format(4), ULYSSES], "n_kv_heads=8"),
    (64, [CP.format(64), ULYSSES], "n_heads=32"),
    (8, ["set:parallelizer.context.method=star"], "expected one of 'all_gather', 'ring', 'ulysses'"),
    (8, [CP.format(8), RING, "set:data.mask_documents=True"], "another method for data with mask_documents=True"),
    (8, [CP.format(8), RING, "tag:AttentionCore=@flex_attention()"], "because method='ring' supports no other core"),
    (8, [CP.format(8), RING, "set:model.layers[3].attention.window=4096"], "expected no window, chunk or sink"),
    (8, [CP.format(8), RING, "set:model.layers[3].attention.chunk=4096"], "expected no window, chunk or sink"),
    (8, [CP.format(8), RING, "set:parallelizer.compile=@compile()"], "another method for a compiled model"),
    # Stages.
    (64, [pipeline(64, microbatches=64)], "at most 32 stages, one for each layer, not 64 (pp=64 x 1 per rank)"),
    (32, [pipeline(32, "Interleaved1F1B", 32)], "not 64 (pp=32 x 2 per rank)"),
    (32, [pipeline(32, "ZBVZeroBubble", 64)], "not 64 (pp="),
    (4, [pipeline(4, "1F1B", 2)], "microbatches=2"),
    (4, [pipeline(4, "Interleaved1F1B", 6), BATCH.format(8)], "microbatches=6"),
    (4, [pipeline(4, "InterleavedZeroBubble", 7), BATCH.format(8)], "microbatches=7"),
    (4, [pipeline(4, "DualPipeV", 4)], "microbatches=4"),
    (4, [pipeline(4, "2F2B", 8)], "schedule='2F2B': expected one of 'GPipe', '1F1B'"),
    (4, [pipeline(4, "1F1B", 8), "set:parallelizer.pipeline.stages_per_rank=2"], "stages_per_rank=2"),
    (4, [pipeline(4, "ZBVZeroBubble"), "set:parallelizer.pipeline.stages_per_rank=3"], "=3"),
    (4, [pipeline(4, "LoopedBFS"), "set:parallelizer.pipeline.stages_per_rank=1"], "=1"),
    (4, [pipeline(4), "set:parallelizer.pipeline.layers_per_stage=[8,8,8]"], "expected 4 positive"),
    (4, [pipeline(4), "set:parallelizer.pipeline.layers_per_stage=[8,8,8,9]"], "add up to 32"),
    (4, [pipeline(4), "set:parallelizer.pipeline.layers_per_stage=[16,8,8,0]"], "expected 4 posit"),
    (4, [pipeline(4, "CSV")], "csv"),
    (4, [pipeline(4, "CSV"), "set:parallelizer.pipeline.csv=/nowhere.csv"], "/nowhere.csv"),
    (4, [pipeline(4), "set:parallelizer.pipeline.csv=/nowhere.csv"], "expected 'CSV'"),
    (4, [pipeline(4, microbatches=0)], "microbatches=0: expected at least 1"),
    # What predicts further tokens.
    (2, ["fiddler:multi_token", CP.format(2)], "cp=1, since the tokens ahead are on other ranks"),
    (2, ["fiddler:multi_token", PP.format(2)], "pp=1, since the embedding is on other ranks"),
    # Batches.
    (4, [pipeline(4), BATCH.format(12)], "microbatches=8: expected a divisor of the local batch of 12"),
    (1024, [], "expected a multiple of local batch 1 x 1024 data-parallel ranks = 1024"),
    (24, [], "expected a multiple of local batch 1 x 24 data-parallel ranks = 24"),
    (64, [BATCH.format(16)], "expected a multiple of local batch 16 x 64 data-parallel ranks = 1024"),
    (8, [pipeline(4, "ZBVZeroBubble"), "fiddler:fsdp(2, 'always')"], "computes gradients of weights later and would lose them"),
    (8, [TP.format(3)], "expected a multiple of 3 ranks for "),
    (8, [TP.format(3)], "n_heads=32: expected a multiple of tp=3"),
    (2, ["tag:AttentionCore=@flex_attention()", "set:device=cpu"], "core=FlexAttention: expected another core on a CPU"),
    (2, [VARLEN, "set:device=cpu"], "VarLen's kernel needs a CUDA device"),
    (1, [CUDNN, "set:device=cpu"], "expected 'flash' or 'math' among"),
    (2, [VARLEN, "tag:ComputeDType=float32", "set:device=cuda"], "in bfloat16, not in float32"),
    (2, [VARLEN, CP.format(2)], "a core other than VarLen, which does not support cp=2"),
    (2, [VARLEN, CP.format(2), ULYSSES], "a core other than VarLen, which does not support cp=2"),
    (2, ["set:parallelizer.fsdp.prefetch=-1"], "prefetch=-1: expected 0 or more"),
    (2, ["set:parallelizer.fsdp.reshard_after_forward=sometimes"], "expected one of 'default'"),
]  # fmt: skip


@pytest.mark.parametrize(("ranks", "edits", "reason"), WRONG)
def test_wrong_meshes_are_refused_by_check(ranks, edits, reason, capsys):
    assert main(["check", *flags("config:llama3_8b", *edits), f"--ranks={ranks}"]) == 2
    assert reason in capsys.readouterr().err


# qwen3_30b_a3b: 128 experts of width 768, 4 KV heads.
@pytest.mark.parametrize(
    ("recipe", "ranks", "edits", "reason"),
    [
        ("llama3_8b", 8, [EP.format(2)], "ep=2: expected 1 for a model without a mixture of experts"),
        ("qwen3_30b_a3b", 8, [EP.format(0)], "ep=0: expected at least 1"),
        ("qwen3_30b_a3b", 8, [EP.format(16)], "expected a multiple of 16 ranks for "),
        ("qwen3_30b_a3b", 9, [EP.format(3)], "n_experts=128: expected a multiple of "),
        ("qwen3_30b_a3b", 8, [EP.format(8), TP.format(2)], "expected a multiple of 16 ranks"),
        ("qwen3_30b_a3b", 3, [EP.format(2), DP.format(3)], "ep=2: expected a divisor of dp_shard=3 x cp=1"),
        ("qwen3_30b_a3b", 10, [TP.format(5)], "hidden_dim=768: expected a multiple of "),
    ],
)  # fmt: skip
def test_experts_that_cannot_be_divided(recipe, ranks, edits, reason, capsys):
    assert main(["check", *flags(f"config:{recipe}", *edits), f"--ranks={ranks}"]) == 2
    assert reason in capsys.readouterr().err


def test_experts_are_divided_among_ranks_of_parameters():
    mesh = Mesh(ep=6, cp=4)
    assert mesh.least == 12  # dp_shard=3, as 12 is what 4 and 6 divide
    assert mesh.sizes(24)["dp_shard"] == 6
    assert Mesh(ep=4, cp=8).least == 8


def test_there_are_64_wrong_meshes():
    assert len(WRONG) >= 64


def test_all_reasons_are_told_at_once(capsys):
    edits = (TP.format(3), CP.format(3), pipeline(64, microbatches=64))
    assert main(["check", *flags("config:llama3_8b", *edits)]) == 2
    told = capsys.readouterr().err
    for reason in ("n_heads=32", "n_kv_heads=8", "out_dim=14336", "= 18", "not 64 (pp="):
        assert reason in told


def test_a_tied_head_cannot_be_sharded_in_a_v(capsys):
    cfg = compose(["config:llama3_1b", pipeline(4, "ZBVZeroBubble")])
    trainer = build(cfg)
    trainer.check(4)
    with pytest.raises(UsageError, match="tied embedding"):
        trainer.check(8)


@pytest.mark.parametrize(
    ("ranks", "edits"),
    [
        (1, []),
        (8, []),
        (256, [TP.format(8)]),
        (256, [HSDP.format(8)]),
        (64, [CP.format(8), TP.format(8)]),
        (8, [CP.format(8), ULYSSES]),
        (512, [TP.format(8), pipeline(8, "Interleaved1F1B", 16), "tag:GlobalBatchSize=1024"]),
        (16, [pipeline(8, "ZBVZeroBubble", 16)]),
    ],
)  # fmt: skip
def test_right_meshes_are_accepted(ranks, edits, capsys):
    assert main(["check", *flags("config:llama3_8b", *edits), f"--ranks={ranks}"]) == 0


@pytest.mark.parametrize("recipe", [r for r in recipes() if "_on_" in r])
def test_layouts_fit_their_world_and_no_other(recipe, capsys):
    ranks = int(recipe.rpartition("_")[2])
    assert main(["check", *flags(f"config:{recipe}"), f"--ranks={ranks}"]) == 0
    assert main(["check", *flags(f"config:{recipe}"), f"--ranks={ranks // 2}"]) == 2
    assert f"expected {ranks} ranks for " in capsys.readouterr().err


def test_sizes_multiply_to_the_world():
    for pp, replicate, cp, tp in itertools.product((1, 2), (1, 3), (1, 2), (1, 4)):
        mesh = Mesh(pp=pp, dp_replicate=replicate, cp=cp, tp=tp)
        sizes = mesh.sizes(5 * mesh.least)
        assert sizes["dp_shard"] == 5
        assert pp * replicate * 5 * cp * tp == 5 * mesh.least


def test_only_split_matrices_need_symmetric_memory():
    """On one rank, as where a run is evaluated, nothing of it is used."""
    edits = ["fiddler:compile", "set:parallelizer.tensor.asynchronous=True"]
    build(tiny(*edits)).check(1, "cpu")
    with pytest.raises(UsageError, match="asynchronous=True: expected False on a CPU"):
        build(tiny(*edits, "fiddler:tensor_parallel(2)")).check(2, "cpu")


@pytest.mark.parametrize("axis", ["pp", "cp", "tp", "ep"])
def test_an_older_torch_has_data_parallelism_only(axis, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.11.0+cu130")
    build(compose(["config:qwen3_moe_debug", "fiddler:hsdp(2)"])).check(4)
    edit = {"pp": PP, "cp": CP, "tp": TP, "ep": EP}[axis].format(2)
    trainer = build(compose(["config:qwen3_moe_debug", edit]))
    with pytest.raises(UsageError, match=f"{axis}=2: expected torch 2.13 or newer, not"):
        trainer.check(2)
