"""Modules as a user's package has them: plain nn.Modules that know nothing of nanigpt."""

import math

import torch
from torch import nn
from torch.nn import functional as F


class LowRank(nn.Module):
    """A frozen matrix and a trained update of low rank, whose parameters are its own."""

    def __init__(self, *, in_dim: int, out_dim: int, rank: int = 4):
        super().__init__()
        self.in_dim, self.out_dim = in_dim, out_dim
        self.weight = nn.Parameter(torch.empty(out_dim, in_dim), requires_grad=False)
        self.down = nn.Parameter(torch.empty(rank, in_dim))
        self.up = nn.Parameter(torch.empty(out_dim, rank))

    def reset_parameters(self):
        for parameter in (self.weight, self.down, self.up):
            nn.init.normal_(parameter, std=1 / math.sqrt(parameter.shape[1]))

    def forward(self, x):
        return F.linear(x, self.weight) + F.linear(F.linear(x, self.down), self.up)


class ReLU2(nn.Module):
    """ReLU squared, with a layer scale that `__init__` sets and `reset_parameters` sets again."""

    def __init__(self, *, dim: int, hidden_dim: int):
        super().__init__()
        self.up = nn.Linear(dim, hidden_dim)
        self.down = nn.Linear(hidden_dim, dim, bias=False)
        self.scale = nn.Parameter(torch.full((dim,), 0.5))
        self.register_buffer("offset", torch.tensor(0.25))

    def reset_parameters(self):
        nn.init.constant_(self.scale, 0.5)
        self.offset.fill_(0.25)

    def forward(self, x):
        return self.scale * self.down(F.relu(self.up(x) + self.offset).square())


class PointwiseReLU2(ReLU2):
    tensor_parallel = "pointwise"


class WholeReLU2(ReLU2):
    """Mixes neighbours, so that it must have the whole sequence."""

    tensor_parallel = "whole"

    def forward(self, x):
        return super().forward((x + x.roll(1, dims=1)) / 2)


class PlainNorm(nn.Module):
    tensor_parallel = "pointwise"

    def __init__(self, *, dim: int):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(dim))

    def reset_parameters(self):
        nn.init.ones_(self.gain)

    def forward(self, x):
        return self.gain * x / x.square().mean(-1, keepdim=True).add(1e-5).sqrt()


class PlainAttention(nn.Module):
    """Attention with learned positions of its own."""

    tensor_parallel = "whole"

    def __init__(self, *, dim: int, n_heads: int, max_sequence_length: int):
        super().__init__()
        self.n_heads = n_heads
        self.max_sequence_length = max_sequence_length
        self.positions = nn.Embedding(max_sequence_length, dim)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(self, x_BLD, cache=None, places=None):
        at = torch.arange(x_BLD.shape[1], device=x_BLD.device)
        x_BLD = x_BLD + self.positions(at)
        q, k, v = self.qkv(x_BLD).unflatten(-1, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2))
