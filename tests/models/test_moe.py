"""Mixtures of experts: against a naive one, and both kernels, compiled and recomputed."""

import pytest
import torch
from torch._dynamo.utils import counters
from torch.nn import functional as F

from nanigpt.models.activation import ClampedSwiGLU
from nanigpt.models.init import TruncatedNormal
from nanigpt.models.moe.dispatch import LocalDispatcher
from nanigpt.models.moe.mixture import MixtureOfExperts
from nanigpt.parallel.compile import Compile
from nanigpt.parallel.remat import Recomputation
from tests.models.test_router import (
    decoder,
    expected_choice,
    filled,
    new_experts,
    new_router,
    new_shared,
    random_tokens,
)

BIAS = TruncatedNormal(std=0.5)
CLAMPED = {"bias": BIAS, "activation": ClampedSwiGLU(alpha=1.5, limit=0.6)}
GROUPED = {"kernel": "grouped"}
GROUPS = {"n_groups": 4, "top_groups": 2, "balance_rate": 0.1}

# Arguments of the router, of the experts, and whether there is a shared expert.
CASES = {
    "softmax": ({}, {}, False),
    "normalized": ({"normalize": True}, {}, False),
    "sigmoid": ({"scores": "sigmoid", "normalize": True, "scale": 2.5}, {}, False),
    "scaled": ({"scale": 3.0, "top_k": 1}, {}, False),
    "all": ({"top_k": 8}, {}, False),
    "groups": ({"n_groups": 4, "top_groups": 2}, {}, False),
    "expert bias": ({"scores": "sigmoid", "balance_rate": 0.1}, {}, False),
    "biases": ({"bias": BIAS, "normalize": True}, CLAMPED, False),
    "inputs of one": ({"scores": "sigmoid", "top_k": 1}, {"weighs": "inputs"}, True),
    "inputs of three": ({"scale": 2.0}, {"weighs": "inputs", "bias": BIAS}, False),
    "shared": ({}, {}, True),
    "much": (
        {"scores": "sigmoid", "normalize": True, "scale": 2.5, "bias": BIAS, **GROUPS},
        {"weighs": "inputs", **CLAMPED},
        True,
    ),
}


def naive(mixture, weights, x_D):
    """The output for one token, of one expert after the other."""
    router, experts = mixture.router, mixture.experts
    w = {name: weight for name, weight in weights.items() if name.startswith("router.")}
    logits_E = w["router.weight"] @ x_D + w.get("router.bias", 0)
    if router.scores == "softmax":
        scores_E = logits_E.exp() / logits_E.exp().sum()
    else:
        scores_E = 1 / (1 + (-logits_E).exp())
    chosen = expected_choice(scores_E.tolist(), router)
    total = sum(scores_E[e] for e in chosen) if router.normalize else 1
    out_D = torch.zeros_like(x_D)
    for e in chosen:
        own = {
            name: weights[f"experts.{name}"][e] if f"experts.{name}" in weights else 0
            for name in ("w1", "w2", "w3", "bias1", "bias2", "bias3")
        }
        weight = router.scale * scores_E[e] / total
        if experts.weighs == "inputs":
            out_D = out_D + naive_expert(experts.activation, weight * x_D, **own)
        else:
            out_D = out_D + weight * naive_expert(experts.activation, x_D, **own)
    if mixture.shared is not None:
        own = {name: weights[f"shared.{name}.weight"] for name in ("w1", "w2", "w3")}
        out_D = out_D + naive_expert(None, x_D, **own)
    return out_D


def naive_expert(activation, x_D, *, w1, w2, w3, bias1=0, bias2=0, bias3=0):
    gate, up, alpha, added = w1 @ x_D + bias1, w3 @ x_D + bias3, 1, 0
    if isinstance(activation, ClampedSwiGLU):
        limit, alpha, added = torch.tensor(activation.limit), activation.alpha, 1
        gate = torch.minimum(gate, limit)
        up = torch.maximum(torch.minimum(up, limit), -limit)
    return w2 @ (gate / (1 + (-alpha * gate).exp()) * (up + added)) + bias2


@pytest.mark.parametrize("kernel", ["loop", "grouped"])
@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_equal_those_of_a_naive_mixture(case, kernel):
    router, experts, shared = CASES[case]
    mixture = filled(
        MixtureOfExperts(
            router=new_router(**router),
            experts=new_experts(kernel=kernel, **experts),
            shared=new_shared() if shared else None,
        )
    )
    if mixture.router.expert_bias is not None:
        mixture.router.expert_bias.copy_(torch.linspace(0.4, -0.4, 8))
    generator = torch.Generator().manual_seed(1)
    x, probe = (torch.randn(2, 11, 16, generator=generator) for _ in range(2))
    x.requires_grad_()
    out, load = mixture(x)
    (out * probe).sum().backward()

    weights = {name: p.detach().double() for name, p in mixture.named_parameters()}
    weights["x"] = x.detach().double()
    for weight in weights.values():
        weight.requires_grad_()
    tokens = [naive(mixture, weights, x_D) for x_D in weights["x"].flatten(0, 1)]
    expected = torch.stack(tokens).unflatten(0, (2, 11))
    (expected * probe).sum().backward()
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-5)
    for name, p in {**dict(mixture.named_parameters()), "x": x}.items():
        assert p.grad.abs().max() > 0, name
        torch.testing.assert_close(
            p.grad.double(), weights[name].grad, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: n + m
        )
    assert load.tokens_E.sum() == 22 * mixture.router.top_k
    assert load.tokens == 22


@pytest.mark.parametrize("weighs", ["outputs", "inputs"])
@pytest.mark.parametrize("bias", [None, BIAS])
@pytest.mark.parametrize(
    "chosen",
    [[0, 1, 2, 3, 4, 5, 6, 7], [5], [0, 3, 7], [1, 2, 4]],
    ids=["all", "one", "ends", "mid"],
)
def test_both_kernels_agree_whichever_experts_are_idle(chosen, bias, weighs):
    generator = torch.Generator().manual_seed(0)
    choices = torch.tensor(chosen)[torch.randint(len(chosen), (2, 20, 2), generator=generator)]
    results = []
    for kernel in ("loop", "grouped"):
        experts = filled(new_experts(kernel=kernel, bias=bias, weighs=weighs))
        generator.manual_seed(1)
        x, probe = (torch.randn(2, 20, 16, generator=generator) for _ in range(2))
        weights = torch.rand(2, 20, 2, generator=generator)
        x.requires_grad_()
        weights.requires_grad_()
        out = experts(x, weights, choices)
        (out * probe).sum().backward()
        gradients = {name: p.grad for name, p in experts.named_parameters()}
        results.append({"out": out, "x": x.grad, "weights": weights.grad, **gradients})
        for name, gradient in gradients.items():
            busy = [e for e in range(8) if gradient[e].count_nonzero()]
            assert busy == chosen, (kernel, name)
    for name, of_loop in results[0].items():
        torch.testing.assert_close(results[1][name], of_loop, atol=1e-5, rtol=1e-5)


def test_rows_are_sorted_by_expert_and_not_padded():
    x = torch.arange(3.0).unsqueeze(1)
    choices = torch.tensor([[3, 0], [1, 3], [0, 3]])
    sent = LocalDispatcher().dispatch(x, choices, 5)
    assert sent.x_RD.flatten().tolist() == [0, 2, 1, 0, 1, 2]
    assert sent.rows_E.tolist() == [2, 1, 0, 3, 0]
    weights = torch.tensor([[1.0, 10.0], [100.0, 1.0], [1.0, 1.0]])
    outs = torch.tensor([[1.0], [2], [3], [4], [5], [6]])
    out = LocalDispatcher().combine(outs, weights, sent.way_back)
    assert out.flatten().tolist() == [4 + 10 * 1, 100 * 3 + 5, 6 + 2]


@pytest.mark.parametrize("kernel", ["loop", "grouped"])
@pytest.mark.parametrize("weighs", ["outputs", "inputs"])
def test_outputs_have_the_dtype_of_the_input(kernel, weighs):
    mixture = filled(
        MixtureOfExperts(
            router=new_router(), experts=new_experts(kernel=kernel, weighs=weighs, bias=BIAS)
        )
    )
    x = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    out, load = mixture(x)
    assert out.dtype == torch.bfloat16
    assert load.entropy.dtype == torch.float32
    torch.testing.assert_close(out.float(), mixture(x.float())[0], atol=0.05, rtol=0.05)


@pytest.mark.cuda
@pytest.mark.parametrize("hidden_dim", [24, 12])
def test_auto_takes_the_loop_where_the_grouped_product_is_refused(hidden_dim):
    results = []
    for kernel in ("loop", "auto"):
        experts = filled(new_experts(kernel=kernel, hidden_dim=hidden_dim)).cuda()
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(2, 9, 16, generator=generator).cuda().bfloat16()
        choices = torch.randint(8, (2, 9, 1), generator=generator).cuda()
        results.append(experts(x, torch.ones(2, 9, 1, device="cuda"), choices))
    torch.testing.assert_close(*results, atol=0.05, rtol=0.05)


def test_active_weights_are_those_of_one_token():
    mixture = MixtureOfExperts(
        router=new_router(), experts=new_experts(), shared=new_shared(hidden_dim=10)
    )
    assert mixture.active_weights() == 16 * 8 + 3 * (3 * 16 * 24) + 3 * 16 * 10


@pytest.fixture
def compiling():
    """Settings of the compiler are the process's; what a run sets is taken back."""
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(capture_scalar_outputs=False):
        yield
    torch._dynamo.reset()


def mixtures(*, recomputation="none", compile=None, experts=None, dtype=torch.float32, **router):
    """A decoder of two layers, of 4 experts each, of which a token takes 2."""
    model = decoder((4, 2), (4, 2), **router)
    model.embedding.compute_dtype = dtype
    for block in model.layers:
        block.activation_checkpointing = recomputation
        for name, value in (experts or {}).items():
            setattr(block.feed_forward.experts, name, value)
    Recomputation().apply(model, None if compile is None else compile.apply)
    return model


def loads(model):
    return [block.feed_forward.tokens_E.tolist() for block in model.layers]


def same_token():
    """Sequences of which every token goes to the same experts."""
    return torch.full((4, 32), 5)


@pytest.mark.parametrize(
    "how, recomputation, others",
    [
        ({"backend": "aot_eager"}, "full", {"experts": {"activation": ClampedSwiGLU()}}),
        ({"backend": "aot_eager"}, "none", {"experts": GROUPED, "dtype": torch.bfloat16}),
        ({"backend": "eager", "fullgraph": False}, "none", {}),
        pytest.param({"backend": "inductor"}, "none", {}, marks=pytest.mark.slow),
    ],
)
def test_one_compilation_serves_every_load(compiling, how, recomputation, others):
    eager, compiled = (
        mixtures(recomputation=recomputation, compile=compile, balance_rate=0.1, **others)
        for compile in (None, Compile(**how))
    )
    seen = []
    for tokens in (random_tokens(0), random_tokens(1), same_token(), random_tokens(2)):
        logits = [model(tokens) for model in (eager, compiled)]
        torch.testing.assert_close(*logits)
        for each in logits:
            F.cross_entropy(each.flatten(0, 1), tokens.roll(-1, 1).flatten()).backward()
        for (name, p), q in zip(eager.named_parameters(), compiled.parameters(), strict=True):
            torch.testing.assert_close(q.grad, p.grad, msg=lambda m, n=name: f"{n}: {m}")
        assert loads(eager) == loads(compiled)
        seen.append(loads(compiled))
        for model in (eager, compiled):
            model.zero_grad()
            for block in model.layers:
                block.feed_forward.reset_buffers()
    assert all(seen[0] != later for later in seen[1:])
    assert sorted(seen[2][0]) == [0, 0, 128, 128]
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


@pytest.mark.parametrize("others", [{}, {"experts": GROUPED, "dtype": torch.bfloat16}])
def test_another_batch_size_is_one_compilation_more(compiling, others):
    eager, compiled = (mixtures(**others) for _ in range(2))
    Compile(backend="aot_eager").apply(compiled)
    batches = [(4, 32), (3, 32), (4, 32), (2, 32)]
    graphs = []
    for seed, shape in enumerate(batches):
        tokens = random_tokens(seed, shape)
        logits = [model(tokens) for model in (eager, compiled)]
        torch.testing.assert_close(*logits)
        for each in logits:
            F.cross_entropy(each.flatten(0, 1), tokens.roll(-1, 1).flatten()).backward()
        graphs.append(counters["stats"]["unique_graphs"])
    for (name, p), q in zip(eager.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, msg=lambda m, n=name: f"{n}: {m}")
    assert loads(eager) == loads(compiled)
    assert [sum(of_layer) for of_layer in loads(compiled)] == [2 * (4 + 3 + 4 + 2) * 32] * 2
    assert graphs == [1, 2, 2, 3]
    assert not counters["graph_break"]


def test_recomputation_changes_nothing_bit_for_bit():
    results = []
    for recomputation in ("none", "full", "selective"):
        model = mixtures(recomputation=recomputation, balance_rate=0.1)
        for seed in range(2):
            model(random_tokens(seed)).logsumexp(-1).sum().backward()
        assert [sum(load) for load in loads(model)] == [2 * 4 * 32 * 2] * 2
        tensors = {name: p.grad for name, p in model.named_parameters()}
        results.append(tensors | dict(model.named_buffers()))
    for recomputed in results[1:]:
        assert results[0].keys() == recomputed.keys()
        for name, expected in results[0].items():
            assert torch.equal(recomputed[name], expected), name


@pytest.mark.parametrize(
    "backend", [None, "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("recomputation", ["full", "selective"])
def test_the_choice_is_kept_and_not_recomputed(compiling, recomputation, backend):
    """Even if recomputed scores would choose exactly the other experts."""
    compile = None if backend is None else Compile(backend=backend)
    model = mixtures(recomputation=recomputation, compile=compile)
    loss = model(same_token()).logsumexp(-1).sum()
    idle = [[e for e, n in enumerate(load) if n == 0] for load in loads(model)]
    assert [len(of_layer) for of_layer in idle] == [2, 2]
    for block in model.layers:
        block.feed_forward.router.weight.data.neg_()
    loss.backward()
    for block, of_layer in zip(model.layers, idle, strict=True):
        for gradient in (block.feed_forward.experts.w1.grad, block.feed_forward.experts.w2.grad):
            assert [e for e in range(4) if not gradient[e].count_nonzero()] == of_layer
