"""Activation recomputation: which products are computed again, and that nothing else changes."""

from collections import Counter
from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import SelectiveCheckpointContext, checkpoint

from nanigpt.config.check.build import build
from nanigpt.errors import UsageError
from nanigpt.parallel.compile import Compile, _graphs
from nanigpt.parallel.mesh import AXES
from nanigpt.parallel.plan import Plan
from nanigpt.parallel.remat import Recomputation, contexts
from tests.support import built_model, tiny

SELECTIVE = "tag:ActivationCheckpointing=selective"
RECOMPUTED = "set:parallelizer.recomputation.recomputed=['{}']"
FAMILIES = ("llama3", "qwen3", "qwen3_moe", "deepseek_v3", "llama4", "gpt_oss")


def model_of(*edits, recipe="llama3_debug", mode="none", backend=None, **policy):
    """A model whose blocks recompute, and are compiled if there is a backend."""
    model = built_model(tiny(f"tag:ActivationCheckpointing={mode}", *edits, recipe=recipe))
    recomputation = Recomputation(**policy)
    compile = None
    if backend is not None:
        compile = partial(Compile(backend=backend).apply, budget=recomputation.budget)
    plan = Plan(dict.fromkeys(AXES, 1), local_batch=1, compiled=backend is not None)
    assert recomputation.problems(model, plan) == []
    recomputation.apply(model, compile)
    return model


def step(model, length=24):
    """Loss and gradients."""
    tokens = torch.randint(512, (2, length), generator=torch.Generator().manual_seed(0))
    model.zero_grad()
    loss = model(tokens).square().mean()
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}


def assert_same_step(model, plain):
    loss, gradients = step(model)
    expected_loss, expected = step(plain)
    assert torch.equal(loss, expected_loss)
    for name, gradient in expected.items():
        if gradient is None:
            assert gradients[name] is None
        else:
            assert torch.equal(gradients[name], gradient), name


class Products(TorchDispatchMode):
    """Counts of each weight the products `x W^T`, which forward passes have and gradients have not;
    of other operators of interest, how often they ran."""

    supports_higher_order_operators = True
    OTHERS = ("topk", "_scaled_dot_product_flash_attention_for_cpu", "_grouped_mm")

    def __init__(self, model):
        super().__init__()
        self.names = {p.data_ptr(): name for name, p in model.named_parameters()}
        for name, p in model.named_parameters():
            if p.ndim == 3:  # those of experts, stacked
                self.names |= {w.data_ptr(): f"{name}[{i}]" for i, w in enumerate(p)}
        self.counts = Counter()

    @classmethod
    def is_infra_mode(cls):
        return True  # of those, compiled code lets itself be watched

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        # Compiled code wraps what could take random numbers.
        wrapped = [a for a in args if isinstance(a, torch._ops.OpOverload)]
        name = (wrapped or [func])[0].__name__.split(".")[0]
        if name in ("mm", "addmm"):
            weight = args[1 if name == "mm" else 2]
            if weight.stride(0) == 1 and weight.data_ptr() in self.names:
                self.counts[self.names[weight.data_ptr()]] += 1
        elif name in self.OTHERS:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def counted(model, length=24, prefix="layers.0."):
    """How often each product of one block, and of all blocks each other operator, ran."""
    with Products(model) as products:
        step(model, length)
    inside = {n: c for n, c in products.counts.items() if n.startswith(prefix)}
    others = {n: products.counts[n] for n in Products.OTHERS}
    return {n.removeprefix(prefix).removesuffix(".weight"): c for n, c in inside.items()}, others


DENSE = ("attention.wq", "attention.wk", "attention.wv", "attention.wo")
DENSE += ("feed_forward.w1", "feed_forward.w3", "feed_forward.w2")


def again(*names):
    return {name: 2 if name in names else 1 for name in DENSE}


POLICIES = pytest.mark.parametrize(
    "policy, expected",
    [
        # Of the last product only the residual stream comes, which no gradient reads.
        ({"mode": "none"}, again()),
        ({"mode": "full"}, again(*DENSE[:-1])),
        ({}, again("attention.wk", "attention.wo", "feed_forward.w3")),
        ({"save_every": 1}, again()),
        ({"save_every": 1, "recomputed": ("layers[0].attention.wk",)}, again("attention.wk")),
        (
            {"save_every": 1, "recomputed": ("model.layers.*.feed_forward",)},
            again("feed_forward.w1", "feed_forward.w3"),
        ),
        (
            {"recomputed": ("layers[*].attention.wq",)},
            again("attention.wq", "attention.wk", "attention.wo", "feed_forward.w3"),
        ),
    ],
    ids=["none", "full", "every_other", "all_kept", "one_name", "pattern", "both"],
)


@POLICIES
def test_exactly_those_products_are_computed_again(policy, expected):
    """`wk` and `wv` are of one shape, as `w1` and `w3` are."""
    assert_counted(model_of(**{"mode": "selective"} | policy), policy, expected)


@pytest.mark.slow
@POLICIES
def test_those_and_no_others_in_compiled_code(policy, expected):
    torch._dynamo.reset()
    model = model_of(**{"mode": "selective", "backend": "aot_eager"} | policy)
    step(model)  # compiles
    assert_counted(model, policy, expected)


def test_layers_of_one_compilation_recompute_what_is_theirs():
    """A named product is that of its layer; layers that are alike are compiled once."""
    torch._dynamo.reset()
    before = _graphs.total()
    model = model_of(
        mode="selective",
        backend="aot_eager",
        save_every=1,
        recomputed=("layers[0].attention.wk",),
    )
    assert_same_step(model, model_of())
    assert _graphs.total() - before == 2
    assert_counted(model, {}, again("attention.wk"))
    second, _ = counted(model, prefix="layers.1.")
    assert second == again()


def assert_counted(model, policy, expected):
    products, others = counted(model)
    assert products == expected
    attention = others["_scaled_dot_product_flash_attention_for_cpu"]
    assert attention == len(model.layers) * (2 if policy.get("mode") == "full" else 1)


@pytest.mark.parametrize(
    "kernel, backend",
    [
        ("loop", None),
        ("grouped", None),
        pytest.param("loop", "aot_eager", marks=pytest.mark.slow),
        pytest.param("grouped", "aot_eager", marks=pytest.mark.slow),
    ],
)
def test_products_of_experts_and_their_choice_are_kept(kernel, backend):
    edits = [f"set:model.layers[*].feed_forward.experts.kernel={kernel}"]
    if kernel == "grouped":
        edits.append("tag:ComputeDType=bfloat16")
    model = partial(model_of, *edits, recipe="qwen3_moe_debug", backend=backend)
    runs = {}
    for name, policy in {
        "none": {},
        "kept": {"mode": "selective", "save_every": 1},
        "forced": {
            "mode": "selective",
            "save_every": 1,
            "recomputed": ("layers[*].feed_forward.experts",),
        },
        "full": {"mode": "full"},
    }.items():
        if backend:
            torch._dynamo.reset()
        made = model(**policy)
        if backend:
            step(made, 8)
        runs[name] = counted(made, 8)
    assert runs["kept"] == runs["none"]
    products, others = runs["forced"]
    for name, n in runs["none"][0].items():
        assert products[name] == n + ("experts" in name)  # routers' weights multiply what w2 gives
    assert runs["none"][1]["topk"] == runs["full"][1]["topk"] == len(made.layers)
    if kernel == "grouped":
        # Each of the three products has two of gradients.
        assert runs["none"][1]["_grouped_mm"] == len(made.layers) * 9
        assert others["_grouped_mm"] == runs["full"][1]["_grouped_mm"] == len(made.layers) * 12
    else:
        assert any("experts.w1" in name for name in products)
        assert runs["full"][0]["feed_forward.experts.w1[0]"] == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_no_mode_changes_loss_or_gradients(family):
    recipe = f"{family}_debug"
    plain = model_of(recipe=recipe)
    for mode in ("full", "selective"):
        assert_same_step(model_of(recipe=recipe, mode=mode), plain)


@pytest.mark.parametrize("mode", ["full", "selective", "budget"])
@pytest.mark.parametrize(
    "family", ["llama3", *(pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES[1:])]
)
def test_nor_does_it_compiled(family, mode):
    torch._dynamo.reset()
    before = _graphs.total()
    recipe = f"{family}_debug"
    model = model_of(recipe=recipe, mode=mode, backend="aot_eager")
    assert_same_step(model, model_of(recipe=recipe))
    kinds = len({repr(block) for block in model.layers})
    assert _graphs.total() - before == kinds


class Alive(TorchDispatchMode):
    """Bytes of what was computed and is still held."""

    def __init__(self):
        super().__init__()
        self.storages = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.storages[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        return out

    def bytes(self):
        return sum(size for reference, size in self.storages.values() if not reference.expired())


def test_what_is_kept_after_the_forward_pass_is_ordered():
    kept = {}
    for mode, save_every in (("none", 1), ("selective", 1), ("selective", 2), ("full", 1)):
        model = model_of(mode=mode, save_every=save_every)
        with Alive() as alive:
            logits = model(torch.zeros(2, 64, dtype=torch.int64))
            kept[mode, save_every] = alive.bytes()
        del logits
    none, all_products, some, full = kept.values()
    assert none > 1.2 * all_products > 1.2 * some > 1.2 * full


def test_what_is_costly_is_kept_and_the_rest_is_not():
    """Of operators that this machine cannot run, only the decision is seen."""
    import torch.nn.attention.varlen  # registers its operator

    policy = contexts(False, 2)()[0].policy_fn
    ops, x = torch.ops, torch.zeros(1)
    packages = [torch.library.Library(name, "FRAGMENT") for name in ("deepep", "hybridep")]
    for package in packages:
        package.define("dispatch(Tensor x) -> Tensor")
        package.define("combine(Tensor x) -> Tensor")

    def decides(op, *args, **kwargs):
        context = SelectiveCheckpointContext(is_recompute=False)
        return policy(context, op, *args, **kwargs).name

    for op in (
        ops.aten.bmm.default,
        ops.aten._scaled_dot_product_cudnn_attention.default,
        ops.aten._scaled_dot_product_flash_attention.default,
        ops.aten._scaled_dot_product_efficient_attention.default,
        ops.torch_attn._varlen_attn.default,
        ops.higher_order.flex_attention,
        ops.higher_order.inductor_compiled_code,
        ops.aten._scaled_grouped_mm.default,
        ops.aten.max.default,
        ops.aten.amax.default,
        ops._c10d_functional.reduce_scatter_tensor.default,
        ops._c10d_functional.all_to_all_single.default,
        *(getattr(ops, p.ns).dispatch.default for p in packages),
        *(getattr(ops, p.ns).combine.default for p in packages),
    ):
        assert decides(op, x) == "MUST_SAVE", op
    for op in (
        ops.aten.mul.Tensor,
        ops.aten.max.dim,
        ops.aten._to_copy.default,
        ops._c10d_functional.all_gather_into_tensor.default,
    ):
        assert decides(op, x) == "PREFER_RECOMPUTE", op
    on_gpu = FakeTensorMode().from_tensor(x)
    on_gpu.fake_device = torch.device("cuda")
    assert decides(ops.aten._to_copy.default, on_gpu, device="cpu") == "MUST_SAVE"
    products = [decides(ops.aten.mm.default, x, x) for _ in range(4)]
    assert products == ["MUST_SAVE", "PREFER_RECOMPUTE"] * 2


def test_each_layer_has_its_own_mode():
    edits = ["set:model.layers[::2].activation_checkpointing=selective"]
    cfg = tiny(*edits)
    assert [layer.activation_checkpointing for layer in cfg.model.layers] == ["selective", "none"]
    model = model_of(*edits[:1], mode="none", save_every=1)
    for name, block, expected in zip("01", model.layers, (2, 1), strict=True):
        # What lies between products is recomputed in the first layer only.
        norms = Counter()
        block.feed_forward_norm.register_forward_hook(lambda *_, c=norms: c.update(["ran"]))
        step(model)
        assert norms["ran"] == expected, name


def test_nothing_is_recomputed_without_gradients():
    model = model_of(mode="full")
    with torch.no_grad(), Products(model) as products:
        model(torch.zeros(1, 8, dtype=torch.int64))
    assert products.counts["layers.0.attention.wq.weight"] == 1


def test_a_backward_pass_in_parts_reads_twice_what_was_kept():
    """As zero-bubble schedules have it: gradients of inputs first, those of weights later."""
    x, w = (torch.randn(4, 4, requires_grad=True) for _ in range(2))

    def gradients(lasting):
        out = checkpoint(
            lambda x, w: torch.mm(x, w).sin().exp(),
            *(x, w),
            use_reentrant=False,
            context_fn=contexts(lasting, 1),
        )
        return [torch.autograd.grad(out.sum(), t, retain_graph=True)[0] for t in (x, w)]

    for got, expected in zip(gradients(True), (x, w), strict=True):
        plain = torch.autograd.grad(torch.mm(x, w).sin().exp().sum(), expected)[0]
        assert torch.equal(got, plain)
    with pytest.raises(RuntimeError, match="extra time"):
        gradients(False)


def test_the_compiler_keeps_to_a_budget():
    counts = {}
    for budget in (0.0, 1.0):
        torch._dynamo.reset()
        model = model_of(mode="budget", backend="aot_eager", budget=budget)
        step(model)
        counts[budget] = counted(model)[0]
    assert counts[1.0] == again()
    assert sum(counts[0.0].values()) > sum(counts[1.0].values())


def test_caches_of_compiled_code_are_told_the_policy():
    seen = []

    def backend(graph, inputs):
        seen.extend(m.meta.get("_checkpoint_context_fn") for m in graph.modules() if m is not graph)
        return graph.forward

    def compile(model):
        block = model.layers[0]
        block.compute = torch.compile(block.compute, backend=backend, fullgraph=True)

    torch._dynamo.reset()
    model = built_model(tiny("tag:ActivationCheckpointing=selective"))
    Recomputation(recomputed=["layers[0].attention.wk"]).apply(model, compile)
    step(model)
    assert [f.cache_hash for f in seen] == [contexts(False, 2, ("attention.wk",)).cache_hash]


@pytest.mark.slow
def test_compiled_code_is_found_again_in_the_cache():
    """As another process would."""
    from torch._dynamo.utils import counters
    from torch._inductor.utils import fresh_cache

    policy = {"mode": "selective", "recomputed": ["layers[*].attention.wk"]}
    with fresh_cache():
        for found in (0, 1):
            torch._dynamo.reset()
            counters.clear()
            step(model_of(backend="inductor", **policy), 8)
            assert counters["aot_autograd"]["autograd_cache_hit"] == found
            assert counters["aot_autograd"]["autograd_cache_bypass"] == 0


def test_layers_that_ask_alike_share_their_policy():
    first = contexts(False, 2, ("attention.wk",))
    assert first is contexts(False, 2, ("attention.wk",))
    others = [contexts(False), contexts(True), contexts(False, 2), contexts(False, 3)]
    assert len({c.cache_hash for c in (first, *others)}) == 5


@pytest.mark.parametrize(
    "edits, message",
    [
        (
            ["tag:ActivationCheckpointing=budget"],
            "activation_checkpointing='budget': expected 'selective' without a compiler",
        ),
        ([RECOMPUTED.format("layers[7]")], r"recomputed='layers\[7\]': expected names of modules"),
        (
            [SELECTIVE, RECOMPUTED.format("layers[0].attention_norm")],
            "expected modules with a matrix product",
        ),
        (
            [RECOMPUTED.format("layers[0].attention")],
            "expected modules of layers with activation_checkpointing='selective'",
        ),
        (
            [SELECTIVE, RECOMPUTED.format("head")],
            "expected modules of layers with activation_checkpointing='selective'",
        ),
        (["set:parallelizer.recomputation.save_every=0"], "save_every=0: expected at least 1"),
        (["set:parallelizer.recomputation.budget=2"], "budget=2.0: expected a share from 0 to 1"),
        (
            [
                "fiddler:compile(scope='model')",
                "set:model.layers[0].activation_checkpointing=budget",
            ],
            "only all layers together",
        ),
        (["fiddler:compile(scope='all')"], "blocks.*model"),
    ],
)
def test_what_cannot_be_recomputed_is_refused(edits, message):
    with pytest.raises(UsageError, match=message):
        build(tiny(*edits)).check(1)


def test_the_whole_model_is_refused_where_it_is_sharded_or_pipelined():
    for edits in (["fiddler:fsdp(2)"], ["fiddler:pipeline(2, '1F1B', 2)"]):
        with pytest.raises(UsageError, match="scope='model': expected 'blocks'"):
            build(tiny("fiddler:compile(scope='model')", *edits)).check(2)
