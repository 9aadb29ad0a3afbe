"""Feed-forward networks, their activations, and norms against what their papers write."""

import math

import fiddle as fdl
import pytest
import torch

from nanigpt.config.check.build import build
from nanigpt.config.compose.flag import compose
from nanigpt.errors import UsageError
from nanigpt.experiments import nodes
from nanigpt.models.activation import GELU, ClampedSwiGLU, ReLUSquared, SiLU, SwiGLU
from nanigpt.models.counts import active_weights
from nanigpt.models.huggingface.families import family_of
from nanigpt.models.init import FanInNormal, TruncatedNormal, initialize, materialize
from nanigpt.models.norm import LayerNorm
from tests.support import TINY, built_model, metrics, train

SIZES = {"dim": 12, "hidden_dim": 20, "output_scale": 1.0}
X = torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def made(cfg: fdl.Config):
    module = build(cfg)
    materialize(module, "cpu")
    initialize(module, seed=1)
    return module.double()


def phi(x: float) -> float:
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


def gelu_tanh(x: float) -> float:
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


# An activation, and what it makes of a number.
FUNCTIONS = [
    (SiLU(), lambda x: x / (1 + math.exp(-x))),
    (GELU(), lambda x: x * phi(x)),
    (GELU(approximate="tanh"), gelu_tanh),
    (ReLUSquared(), lambda x: max(x, 0.0) ** 2),
]


@pytest.mark.parametrize(("activation", "function"), FUNCTIONS, ids=lambda x: repr(x)[:24])
def test_an_activation_is_its_function_alone_and_as_a_gate(activation, function):
    expected = X.clone().apply_(function)
    torch.testing.assert_close(activation(X), expected)
    up = torch.randn_like(X)
    torch.testing.assert_close(activation(X, up), expected * up)


def test_gelu_names_its_approximations():
    with pytest.raises(ValueError, match="approximate='erf': expected one of 'none', 'tanh'"):
        GELU(approximate="erf")


@pytest.mark.parametrize("activation", [None, GELU(), ReLUSquared(), ClampedSwiGLU()])
def test_a_gated_network(activation):
    module = made(nodes.feed_forward(**SIZES))
    if activation is not None:
        module.activation = activation
    function = activation or (lambda gate, up: gate * torch.sigmoid(gate) * up)
    hidden = function(X @ module.w1.weight.T, X @ module.w3.weight.T)
    torch.testing.assert_close(module(X), hidden @ module.w2.weight.T)


@pytest.mark.parametrize("bias", [False, True])
def test_a_network_of_two_matrices(bias):
    cfg = nodes.mlp(**SIZES, bias=bias)
    if bias:
        for w in (cfg.w1, cfg.w2):
            w.bias = fdl.Config(TruncatedNormal, std=1.0)
    module = made(cfg)
    one, two = (w.bias if bias else 0.0 for w in (module.w1, module.w2))
    hidden = (X @ module.w1.weight.T + one).detach().apply_(lambda x: x * phi(x))
    torch.testing.assert_close(module(X).detach(), (hidden @ module.w2.weight.T + two).detach())
    assert active_weights(module) == 2 * 12 * 20


def test_networks_refuse_matrices_that_do_not_fit():
    cfg = nodes.mlp(**SIZES)
    cfg.w2.in_dim = 21
    with pytest.raises(
        UsageError, match="w2.in_dim=21: expected 20 for w1.in_dim=12, w1.out_dim=20"
    ):
        build(cfg)


@pytest.mark.parametrize("bias", [False, True])
def test_layer_norm(bias):
    cfg = nodes.layer_norm(12, bias=bias, eps=1e-3)
    cfg.initializer = fdl.Config(FanInNormal)
    if bias:
        cfg.bias = fdl.Config(TruncatedNormal, std=1.0)
    module = made(cfg)
    centred = X - X.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-3).sqrt()
    expected = scaled * module.weight + (module.bias if bias else 0.0)
    torch.testing.assert_close(module(X), expected)


def test_layer_norm_without_weight():
    centred = X - X.mean(-1, keepdim=True)
    norm = LayerNorm(dim=12, initializer=None, eps=0.0)
    expected = centred / centred.square().mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(norm(X), expected)
    with pytest.raises(ValueError, match="bias=.*: expected None without a weight"):
        LayerNorm(dim=12, initializer=None, bias=FanInNormal())


def test_the_command_line_exchanges_activations(finished, tmp_path):
    edits = ["fiddler:steps(2)", "set:model.layers[*].feed_forward.activation=@gelu('tanh')"]
    cfg = compose([*TINY, *edits])
    activations = [layer.feed_forward.activation for layer in build(cfg).model.layers]
    assert [repr(a) for a in activations] == ["GELU(approximate='tanh')"] * 2
    other = train(cfg, tmp_path / "gelu")[0]["loss"]
    usual = metrics(finished)[0]["loss"]  # silu's, of the same first step
    assert abs(other - usual) > 1e-4


def test_swiglu_is_silu_as_a_gate():
    up = torch.randn_like(X)
    assert torch.equal(SwiGLU()(X, up), SiLU()(X, up))


def test_no_other_activation_is_given_to_hugging_face():
    cfg = compose([*TINY, "set:model.layers[0].feed_forward.activation=@gelu()"])
    with pytest.raises(UsageError, match="layers have GELU: expected SwiGLU"):
        family_of(built_model(cfg))
