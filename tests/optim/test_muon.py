"""Muon against upstream's on whole matrices, stacks against single matrices, and resuming."""

import copy

import pytest
import torch

from nanigpt.config.check.build import build
from nanigpt.config.compose.flag import compose
from nanigpt.errors import UsageError
from nanigpt.optim.adamw import adamw
from nanigpt.optim.muon import muon, orthogonalize
from nanigpt.parallel.world import start_world
from nanigpt.problems import ComponentError
from nanigpt.training.checkpoint import Checkpointer, Progress
from nanigpt.training.run_directory import RunDirectory
from tests.support import built_model, tiny, train
from tests.training.test_checkpoint import cut_back, numbers

ITERATION = {"steps": 5, "coefficients": (3.4445, -4.7750, 2.0315), "eps": 1e-7}


def matrices(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def step(optimizer, parameters, seed):
    generator = torch.Generator().manual_seed(seed)
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=generator)
    optimizer.step()


@pytest.mark.parametrize("adjust_lr", ["match_rms_adamw", "original"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_equals_upstream_on_whole_matrices(adjust_lr, nesterov):
    shapes = [(8, 12), (12, 8), (8, 8), (8, 12)]
    ours, theirs = matrices(*shapes), matrices(*shapes)
    values = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.9, "nesterov": nesterov}
    named = [(f"layers.{i}.weight", p) for i, p in enumerate(ours)]
    optimizer = muon(named, others=adamw, adjust_lr=adjust_lr, **values)
    upstream = torch.optim.Muon(theirs, adjust_lr_fn=adjust_lr, **values)
    for seed in range(3):
        step(optimizer, ours, seed)
        step(upstream, theirs, seed)
    for p, q in zip(ours, theirs, strict=True):
        assert torch.equal(p, q)


def test_each_matrix_of_a_stack_is_by_itself():
    stack, *single = matrices((3, 6, 10), (6, 10), (6, 10), (6, 10))
    with torch.no_grad():
        for matrix, own in zip(stack, single, strict=True):
            own.copy_(matrix)
    values = {"others": adamw, "lr": 0.1, "dtype": torch.float32}
    of_stack = muon([("layers.0.experts.w1", stack)], **values)
    apart = [muon([("layers.0.w.weight", p)], **values) for p in single]
    gradients = torch.randn(3, 6, 10) * torch.tensor([1.0, 10.0, 0.1]).view(3, 1, 1)
    stack.grad = gradients
    of_stack.step()
    for optimizer, p, gradient in zip(apart, single, gradients, strict=True):
        p.grad = gradient.clone()
        optimizer.step()
    torch.testing.assert_close(stack.detach(), torch.stack([p.detach() for p in single]))


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (2, 7, 7), (0, 4, 4)])
def test_singular_values_come_near_one(shape):
    out = orthogonalize(torch.randn(shape, generator=torch.Generator().manual_seed(0)), **ITERATION)
    assert out.shape == shape
    values = torch.linalg.svdvals(out)
    assert ((values > 0.3) & (values < 1.4)).all(), values


def test_the_rest_is_adamws():
    named = build(tiny().model).to_empty(device="cpu").named_parameters()
    named = [(n, torch.nn.Parameter(torch.full_like(p, 0.5))) for n, p in named]
    twins = [(n, torch.nn.Parameter(p.detach().clone())) for n, p in named]
    optimizer, plain = muon(named, others=adamw, dtype=torch.float32), adamw(twins)
    step(optimizer, [p for _, p in named], 0)
    step(plain, [p for _, p in twins], 0)
    same = {n for (n, p), (_, q) in zip(named, twins, strict=True) if torch.equal(p, q)}
    assert same == {n for n, p in named if p.ndim == 1 or n.startswith(("embedding", "head"))}
    optimizer.zero_grad()
    assert all(p.grad is None for _, p in named)


def test_a_state_dict_of_both_loads():
    """Another optimizer loads it, and goes on alike."""
    ours, theirs = matrices((4, 6), (5,)), matrices((4, 6), (5,))
    one, other = (
        muon([("layers.0.w.weight", w), ("norm.weight", g)], others=adamw)
        for w, g in (ours, theirs)
    )
    step(one, ours, 0)
    with torch.no_grad():
        for p, q in zip(ours, theirs, strict=True):
            q.copy_(p)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    step(one, ours, 1)
    step(other, theirs, 1)
    assert all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))


def test_the_dtype_of_products_is_the_computes():
    assert compose(["config:llama3_1b", "fiddler:muon"]).optimizer.dtype == torch.bfloat16
    assert compose(["config:llama3_debug", "fiddler:muon"]).optimizer.dtype == torch.float32
    assert tiny("fiddler:muon", "tag:ComputeDType=bf16").optimizer.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("recipe", "edits"),
    [
        ("qwen3_moe_debug", ["fiddler:muon"]),
        ("llama3_debug", ["set:optimizer.state=8bit", "fiddler:muon"]),
        pytest.param(
            "llama3_debug",
            ["set:optimizer=@muon()", "fiddler:optimizer_state(bfloat16)"],
            marks=pytest.mark.slow,
        ),
    ],
    ids=["experts", "8bit", "bfloat16"],
)
def test_resuming_equals_never_having_stopped_bit_for_bit(tmp_path, recipe, edits):
    short = ("fiddler:steps(6)", "set:checkpointer.interval=3", "set:evaluations[val].n_samples=4")
    cfg = tiny(*edits, *short, recipe=recipe)
    whole = train(cfg, tmp_path)
    assert whole[-1]["loss"] < whole[0]["loss"]
    cut_back(tmp_path, 3)
    resumed = train(cfg, tmp_path)
    assert [row["step"] for row in resumed] == list(range(1, 7))
    assert numbers(resumed) == numbers(whole)


def test_the_checkpoint_of_another_optimizer_is_refused(tmp_path):
    run, world, model = RunDirectory(tmp_path), start_world("cpu"), built_model(tiny())
    adamws = adamw(model.named_parameters())
    Checkpointer().save(run, world, model, adamws, Progress(step=1))
    muons = muon(model.named_parameters(), others=adamw, dtype=torch.float32)
    with pytest.raises(UsageError, match="another optimizer: no layers.0.*momentum_buffer and 13"):
        Checkpointer().load_latest(run, world, model, muons)


def test_no_iterations_are_refused():
    with pytest.raises(ComponentError, match="ns_steps=0: expected at least 1"):
        muon([], others=adamw, ns_steps=0)
