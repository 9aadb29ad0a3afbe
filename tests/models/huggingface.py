"""Tiny models of ours and of transformers, for tests of weights in and out."""

import fiddle as fdl
import torch
from torch import nn

from experiments.llama3 import llama3_model
from nanigpt.config.build import build
from nanigpt.models.init import Constant, initialize, materialize
from nanigpt.models.rope import Llama3Scaling

SHAPES = {
    "gqa": {"dim": 48, "n_heads": 6, "n_kv_heads": 2, "hidden_dim": 80, "n_layers": 3},
    "tied": {"dim": 32, "n_heads": 4, "n_kv_heads": 4, "hidden_dim": 56, "tied": True},
    "scaled": {"dim": 64, "n_heads": 4, "n_kv_heads": 1, "hidden_dim": 96},
    "biased": {"dim": 40, "n_heads": 5, "n_kv_heads": 5, "hidden_dim": 64},
    "wide_heads": {"dim": 24, "n_heads": 4, "n_kv_heads": 2, "hidden_dim": 48, "tied": True},
}


def tiny_llama(shape: str) -> fdl.Config:
    """The config of a decoder with 97 tokens and 64 positions."""
    sizes = {"n_layers": 2, **SHAPES[shape]}
    cfg = llama3_model(**sizes, vocab_size=97, sequence_length=64, compute_dtype=torch.float32)
    for layer in cfg.layers:
        attention, mlp = layer.attention, layer.feed_forward
        if shape == "biased":
            for linear in (attention.wq, attention.wk, attention.wv, attention.wo):
                linear.bias = fdl.Config(Constant, value=0.0)
            for linear in (mlp.w1, mlp.w2, mlp.w3):
                linear.bias = fdl.Config(Constant, value=0.0)
        if shape == "wide_heads":
            attention.head_dim = attention.rope.head_dim = 10
            attention.wq.out_dim = attention.wo.in_dim = 10 * attention.n_heads
            attention.wk.out_dim = attention.wv.out_dim = 10 * attention.n_kv_heads
    if shape == "scaled":  # all three kinds of frequencies are within 64 positions
        rope = cfg.layers[0].attention.rope
        rope.theta = 500.0
        rope.scaling = fdl.Config(Llama3Scaling, factor=4.0, original_max_positions=32)
    return cfg


def randomize(model: nn.Module, *, seed: int) -> nn.Module:
    """Gives every parameter other values, gains and biases too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def random_model(shape: str, *, seed: int = 1) -> nn.Module:
    model = build(tiny_llama(shape))
    materialize(model, "cpu")
    initialize(model, seed=seed)
    return randomize(model, seed=seed)


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of the parameters by name."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}
