"""Float8 products against rounding written out here, and training with them."""

import pytest
import torch
from torch.nn import functional as F

from nanigpt.cli.main import main
from nanigpt.config.check.build import build
from nanigpt.errors import UsageError
from nanigpt.models.init import FanInNormal
from nanigpt.models.linear import Linear
from nanigpt.models.moe.experts import Experts
from nanigpt.parallel.compile import Compile
from nanigpt.parallel.world import start_world
from nanigpt.precision.float8 import Float8, in_whole_units
from nanigpt.training.loop import steps
from nanigpt.training.setup import new_session
from tests.support import QUICK, TINY, built_model, finish, flags, start, tiny

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
FAMILIES = ("llama3", "qwen3", "qwen3_moe", "deepseek_v3", "llama4", "gpt_oss")


def rounded(x, dtype, *, over, power_of_2=False):
    """x as float8 can hold it with scales, each of the numbers along the dims `over`."""
    scale = torch.finfo(dtype).max / x.abs().amax(over, keepdim=True)
    if power_of_2:
        scale = scale.log2().floor().exp2()
    return (x * scale).to(dtype).float() / scale


def tensorwise(x, w, g):
    x, w, g = (rounded(t, dtype, over=(0, 1)) for t, dtype in ((x, E4M3), (w, E4M3), (g, E5M2)))
    return x @ w.T, g @ w, g.T @ x


def rowwise(x, w, g):
    """Scales belong to what remains of a product, not to what it sums over."""

    def product(a, b):
        return rounded(a, E4M3, over=1, power_of_2=True) @ rounded(b, E4M3, over=0, power_of_2=True)

    return product(x, w.T), product(g, w), product(g.T, x)


def rowwise_with_gw_hp(x, w, g):
    one_scale = rounded(w, E4M3, over=(0, 1), power_of_2=True)
    into = rounded(g, E4M3, over=1, power_of_2=True) @ one_scale
    return rowwise(x, w, g)[0], into, g.T @ x


def mxfp8(x, w, g):
    """A scale for each 32 numbers that a product sums over."""

    def product(a, b):
        a, b = (
            rounded(t.unflatten(1, (-1, 32)), E4M3, over=2, power_of_2=True).flatten(1)
            for t in (a, b.T)
        )
        return a @ b.T

    return product(x, w.T), product(g, w), product(g.T, x)


def operands(rows=64, in_dim=96, out_dim=32):
    """Input, weight and gradient of the output, whose rows and columns are of unlike sizes."""
    generator = torch.Generator().manual_seed(0)

    def random(n, m):
        sizes = [torch.randn(k, generator=generator).exp() for k in (n, m)]
        return torch.randn(n, m, generator=generator) * sizes[0][:, None] * sizes[1]

    return random(rows, in_dim), random(out_dim, in_dim), random(rows, out_dim)


def product(recipe, x, w, g, *, emulate=True, **options):
    """Output, and gradients of input and weight."""
    layer = Linear(in_dim=w.shape[1], out_dim=w.shape[0], initializer=None, float8=recipe)
    Float8(emulate=emulate, **options).apply(layer)
    x, w = x.clone().requires_grad_(), w.clone().requires_grad_()
    y = layer.product(x, w, None)
    y.backward(g)
    return y.detach(), x.grad, w.grad


@pytest.mark.parametrize("reference", [tensorwise, rowwise, rowwise_with_gw_hp, mxfp8])
def test_products_are_those_of_rounded_operands(reference):
    x, w, g = operands()
    for got, want, exact in zip(
        product(reference.__name__, x, w, g),
        reference(x, w, g),
        (x @ w.T, g @ w, g.T @ x),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * want.abs().max().item())
        if not torch.equal(want, exact):
            assert 0.005 < (got - exact).norm() / exact.norm() < 0.1


def test_the_weights_gradient_stays_in_high_precision_where_the_recipe_says_so():
    x, w, g = operands()
    assert torch.equal(product("rowwise_with_gw_hp", x, w, g)[2], g.T @ x)
    assert not torch.equal(product("rowwise", x, w, g)[2], g.T @ x)


@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise", "mxfp8"])
def test_any_number_of_rows(recipe):
    """Such as the one token that sampling adds, and a last batch."""
    x, w, g = operands(rows=7)
    whole = product(recipe, *operands(rows=7))
    filled = [F.pad(t, (0, 0, 0, 25)) for t in (x, g)]
    y, into, weight = product(recipe, filled[0], w, filled[1])
    for got, want in zip(whole, (y[:7], into[:7], weight), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise", "rowwise_with_gw_hp"])
@pytest.mark.parametrize("rows", [64, 7])
def test_emulation_gives_what_kernels_give(recipe, rows):
    """PyTorch has one for CPUs, so that this runs anywhere; by rows it puts out bfloat16."""
    emulated = product(recipe, *operands(rows))
    kernels = product(recipe, *operands(rows), emulate=False)
    for got, want in zip(kernels, emulated, strict=True):
        error = (got - want).norm() / want.norm()
        assert error < (1e-6 if recipe == "tensorwise" else 4e-3)


def test_what_is_gathered_in_float8_is_cast_from_the_master_weight():
    """On one process too, or its losses would not be those of many."""
    x, w, g = (t.bfloat16() if i != 1 else t for i, t in enumerate(operands()))
    from_master = product("tensorwise", x, w, g)[0]
    assert torch.equal(
        product("tensorwise", x, w, g, all_gather=False)[0],
        product("tensorwise", x, w.bfloat16(), g)[0],
    )
    torch.testing.assert_close(
        from_master.float(), tensorwise(x.float(), w, g.float())[0], rtol=0.01, atol=1.0
    )


@pytest.mark.parametrize("recipe", ["rowwise", "mxfp8"])
def test_experts_are_computed_by_their_recipe(recipe):
    """Whole, one after the other, and as units of rows for a kernel; one expert has no row."""
    x, w, _ = operands(rows=50)
    ends = torch.tensor([3, 3, 40, 50], dtype=torch.int32)
    weights = torch.stack([w, w, 2 * w, -w])
    begin = 0
    parts = []
    for end, weight in zip(ends.tolist(), weights, strict=True):
        rows = F.pad(x[begin:end], (0, 0, 0, -(end - begin) % 32))
        if end > begin:
            parts.append(
                globals()[recipe](rows, weight, torch.ones(len(rows), 32))[0][: end - begin]
            )
        begin = end
    experts = Experts(
        n_experts=4, dim=96, hidden_dim=32, initializer=None, output_initializer=None, float8=recipe
    )
    Float8(emulate=True).apply(experts)
    got = experts.grouped_product(x, weights, ends)
    torch.testing.assert_close(got, torch.cat(parts), rtol=1e-4, atol=1e-4 * got.abs().max().item())


def test_rows_of_experts_are_brought_to_whole_units():
    """For kernels, of which this stands in for one: it wants multiples, and leaves the rest."""

    def kernel(x, w, *, offs):
        assert not (offs % 16).any() and offs[-1] <= x.shape[0]
        ends = offs.tolist()
        parts = [x[a:b] @ m for a, b, m in zip([0, *ends], ends, w, strict=False)]
        rest = torch.full((x.shape[0] - ends[-1], w.shape[2]), torch.nan)
        return torch.cat([*parts, rest])

    rows, ends = [17, 0, 16, 5], torch.tensor([17, 17, 33, 38], dtype=torch.int32)
    x, _, g = operands(rows=38)
    x.requires_grad_()
    w = torch.randn(4, 32, 96, generator=torch.Generator().manual_seed(1)).requires_grad_()
    results = []
    for y in (
        in_whole_units(kernel, 16)(x, w, ends),
        torch.cat([part @ m.T for part, m in zip(x.split(rows), w, strict=True)]),
    ):
        results.append((y, *torch.autograd.grad(y, (x, w), g)))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


def losses(*edits):
    """Of 50 steps in bfloat16."""
    common = ("fiddler:steps(50)", "tag:SequenceLength=32", "tag:GlobalBatchSize=4")
    trainer = build(tiny(*common, "tag:ComputeDType=bfloat16", *edits))
    trainer.data.setup()
    trainer.schedule = lambda step, steps: 1.0  # no warm-up, so that steps differ more
    session = new_session(trainer, start_world("cpu"))
    return torch.stack([row["loss"] for row in steps(session)])


@pytest.fixture(scope="module")
def bf16():
    return losses()


@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise"])
def test_fifty_steps_lose_what_they_do_in_bf16(recipe, bf16):
    found = losses(f"fiddler:float8('{recipe}', emulate=True)")
    difference = (found - bf16).abs() / bf16
    assert found[-1] < 0.6 * found[0]
    assert difference.max() < 0.02  # seen: 0.006
    assert difference.median() > 1e-5  # as much as nothing of it were in float8


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_takes_a_step(family):
    cfg = tiny("fiddler:float8(emulate=True)", recipe=f"{family}_debug")
    exact, model = built_model(tiny(recipe=f"{family}_debug")), built_model(cfg)
    Float8(emulate=True).apply(model)
    layers = [m for m in model.modules() if isinstance(m, Linear) and m.float8]
    assert len(layers) >= 4 * len(cfg.model.layers) and model.head not in layers
    tokens = torch.randint(512, (2, 17), generator=torch.Generator().manual_seed(0))
    difference = (model(tokens) - exact(tokens)).norm() / exact(tokens).norm()
    assert 1e-3 < difference < 0.5
    losses = []
    for _ in range(2):
        logits_TV = model(tokens[:, :-1]).flatten(0, 1)
        losses.append(F.cross_entropy(logits_TV, tokens[:, 1:].flatten()))
        losses[-1].backward()
        torch.optim.SGD(model.parameters(), lr=0.01).step()
    assert losses[1] < losses[0]
    assert all(layer.weight.grad.isfinite().all() for layer in layers)


def test_a_layer_can_differ():
    cfg = tiny("fiddler:float8(emulate=True)", "set:model.layers[0].attention.wq.float8=None",
               "set:model.layers[1].attention.wq.float8=rowwise")  # fmt: skip
    model = build(cfg.model)
    Float8(emulate=True).apply(model)
    plain, rowwise, usual = (
        model.layers[i].attention.get_submodule(n).product
        for i, n in ((0, "wq"), (1, "wq"), (1, "wk"))
    )
    assert usual is model.layers[0].feed_forward.w1.product
    assert len({plain, rowwise, usual, model.head.product}) == 3  # the head's is the plain one


@pytest.mark.slow
def test_blocks_with_float8_compile_as_one_graph():
    cfg = tiny("fiddler:float8(emulate=True)")
    cfg.model.layers = cfg.model.layers[:1]
    tokens = torch.randint(512, (2, 16), generator=torch.Generator().manual_seed(0))
    results = []
    for compiled in (False, True):
        model = built_model(cfg)
        Float8(emulate=True).apply(model)
        if compiled:
            Compile(backend="aot_eager", fullgraph=True).apply(model)
        logits = model(tokens)
        logits.square().mean().backward()
        results.append([logits.detach(), *(p.grad for p in model.parameters())])
    for eager, graph in zip(*results, strict=True):
        torch.testing.assert_close(graph, eager)


@pytest.mark.parametrize(
    "edits, message",
    [
        (["fiddler:float8"], "float8='tensorwise': expected a CUDA device, not cpu; try emulate"),
        (["fiddler:float8('rowwise')"], "float8='rowwise': expected a CUDA device, not cpu"),
    ],
)
def test_a_device_without_float8_is_refused(edits, message):
    with pytest.raises(UsageError, match=message):
        build(tiny(*edits)).check(1, "cpu")


@pytest.mark.parametrize(
    "recipe, edit, capability, least",
    [
        ("llama3_debug", "fiddler:float8", (8, 0), "8.9"),
        ("llama3_debug", "fiddler:float8", (8, 9), None),
        ("deepseek_v3_debug", "fiddler:float8('rowwise', experts=True)", (8, 9), "9.0"),
        ("llama3_debug", "fiddler:float8('mxfp8')", (9, 0), "10.0"),
        ("llama3_debug", "fiddler:float8('mxfp8', emulate=True)", (8, 0), None),
    ],
)
def test_gpus_have_float8_from_some_capability_on(recipe, edit, capability, least, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    trainer = build(tiny(edit, recipe=recipe))
    if least is None:
        trainer.check(1, "cuda")
        return
    with pytest.raises(UsageError, match=f"capability {least} or higher, not a GPU"):
        trainer.check(1, "cuda")


def test_torchao_is_asked_for_where_it_is_missing_and_only_there(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    build(tiny()).check(1, "cpu")
    Float8().apply(build(tiny().model))
    with pytest.raises(
        UsageError, match=r"torchao, which is not installed; try pip install 'nanigpt\[float8\]'"
    ):
        build(tiny("fiddler:float8(emulate=True)")).check(1, "cpu")
    with pytest.raises(UsageError, match="not installed"):
        Float8().apply(build(tiny("fiddler:float8").model))


def test_sampling_from_a_run_is_in_full_precision(tmp_path, monkeypatch):
    """As in bfloat16: scales are of what is multiplied at a time, and any device can do it."""
    run = f"--run_dir={tmp_path / 'run'}"
    edits = (*TINY, "fiddler:steps(1)", "set:schedule.warmup_steps=0", *QUICK)
    assert main(["train", *flags(*edits, "fiddler:float8(emulate=True)"), run]) == 0
    applied = []

    def apply(_, model, **options):
        applied.append([m for m in model.modules() if getattr(m, "float8", None)])
        return []

    monkeypatch.setattr(Float8, "apply", apply)
    assert main(["generate", run, "--max_new_tokens=1"]) == 0
    assert applied == [[]]


def test_the_import_of_torchao_is_quiet():
    """Of kernels for GPUs, and of what it uses of PyTorch, it would warn each process."""
    code = "from nanigpt.logs import import_torchao; import_torchao()"
    done = finish(start("-c", code), 60)
    assert done.returncode == 0
    if not torch.cuda.is_available():
        assert done.stdout == done.stderr == ""


def test_a_layer_without_its_product_says_what_to_do():
    model = built_model(tiny("fiddler:float8"))
    with pytest.raises(RuntimeError, match=r"call nanigpt.precision.float8.Float8\(...\).apply"):
        model(torch.zeros(1, 4, dtype=torch.long))


@pytest.mark.parametrize(
    "edits, message",
    [
        (
            ["fiddler:float8", "fiddler:tensor_parallel(16)"],
            "out_dim=128: expected a multiple of tp=16 x 16",
        ),
        (
            ["fiddler:float8('mxfp8')", "fiddler:tensor_parallel(2)"],
            "'mxfp8': expected another recipe with tp=2",
        ),
    ],
)
def test_parts_of_matrices_need_sizes_too(edits, message):
    trainer = build(tiny(*edits))
    with pytest.raises(UsageError, match=message):
        trainer.check(trainer.parallelizer.mesh.least)


@pytest.mark.cuda
@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise", "rowwise_with_gw_hp"])
@pytest.mark.parametrize("rows", [64, 7])
def test_gpus_give_what_emulation_gives(recipe, rows):
    x, w, g = (t.cuda() for t in operands(rows))
    x, g = x.bfloat16(), g.bfloat16()
    results = [product(recipe, x, w, g, emulate=emulate) for emulate in (False, True)]
    for got, want in zip(*results, strict=True):
        assert (got - want).norm() / want.norm() < 0.01


@pytest.mark.cuda
@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (9, 0),
    reason="the grouped product in float8 needs compute capability 9.0",
)
def test_gpus_compute_experts_as_emulation_does():
    """One has no row, others numbers of them that are no multiple of 16."""
    ends = torch.tensor([17, 17, 33, 38], dtype=torch.int32, device="cuda")
    x = operands(rows=38)[0].cuda().bfloat16().requires_grad_()
    w = torch.randn(4, 32, 96, device="cuda", dtype=torch.bfloat16).requires_grad_()
    results = []
    for emulate in (False, True):
        experts = Experts(
            n_experts=4, dim=96, hidden_dim=32, initializer=None, output_initializer=None,
            float8="rowwise",
        )  # fmt: skip
        Float8(emulate=emulate).apply(experts)
        y = experts.grouped_product(x, w, ends)
        results.append((y, *torch.autograd.grad(y.float().square().sum(), (x, w))))
    for got, want in zip(*results, strict=True):
        assert (got - want).norm() / want.norm() < 0.02


def test_shapes_are_checked_before_a_layer_has_its_product():
    """A model with a module of another package runs on meta in `check`, also its float8 layers."""
    layer = Linear(in_dim=32, out_dim=64, initializer=FanInNormal(), float8="tensorwise")
    assert layer(torch.empty(2, 3, 32, device="meta")).shape == (2, 3, 64)
