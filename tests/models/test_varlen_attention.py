"""VarLen attention against the written-out core; on a CPU with a kernel written out, too."""

import functools
import math

import pytest
import torch
from torch.nn.attention import varlen

from nanigpt.errors import UsageError
from nanigpt.models.attention_core import Eager
from nanigpt.models.varlen_attention import VarLen
from nanigpt.models.visibility import Places, Visibility
from tests.support import built_model, tiny

BATCH, LENGTH, HEADS, KV_HEADS = 3, 24, 4, 2

SIGHTS = pytest.mark.parametrize(
    "visibility",
    [
        Visibility(),
        Visibility(window=1),
        Visibility(window=5),
        Visibility(chunk=7),
        Visibility(chunk=8),
        Visibility(window=4, chunk=10),
        Visibility(window=LENGTH, chunk=LENGTH),
    ],
    ids=lambda v: f"{v.window}-{v.chunk}",
)
KINDS = pytest.mark.parametrize("kind", ["plain", "positions", "documents"])


def naive_varlen(
    q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size, enable_gqa=False
):
    """What `torch.nn.attention.varlen.varlen_attn` computes, sequence by sequence."""
    assert cu_seq_q.dtype == torch.int32 and torch.equal(cu_seq_q, cu_seq_k)
    assert q.shape[-1] == k.shape[-1] == v.shape[-1] and q.shape[-1] % 8 == 0
    assert enable_gqa or q.shape[1] == k.shape[1]
    assert cu_seq_q[0] == 0 and cu_seq_q[-1] == len(q) == len(k)
    left, right = window_size
    assert right == 0
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    out = []
    for begin, end in zip(cu_seq_q[:-1].tolist(), cu_seq_q[1:].tolist(), strict=True):
        assert end - begin <= min(max_q, max_k)
        score = torch.einsum("qhd,khd->hqk", q[begin:end], k[begin:end]) * scale
        i = torch.arange(end - begin)
        hidden = i > i[:, None]
        if left >= 0:
            hidden |= i[:, None] - i > left
        weight = score.masked_fill(hidden, -math.inf).softmax(-1)
        out.append(torch.einsum("hqk,khd->qhd", weight, v[begin:end]))
    return torch.cat(out)


@pytest.fixture
def naive(monkeypatch):
    """Replaces the kernel; holds the cumulative lengths that it was given."""
    given = []

    @functools.wraps(naive_varlen)
    def kernel(q, k, v, cu_seq_q, *rest, **named):
        given.append(cu_seq_q)
        return naive_varlen(q, k, v, cu_seq_q, *rest, **named)

    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    return given


def inputs(device="cpu", dtype=torch.float32, *, kv_heads=KV_HEADS, key_dim=16, value_dim=16):
    generator = torch.Generator().manual_seed(0)
    shapes = [(HEADS, key_dim), (kv_heads, key_dim), (kv_heads, value_dim)]
    return [
        torch.randn(BATCH, LENGTH, *shape, generator=generator).to(device, dtype).requires_grad_()
        for shape in shapes
    ]


def places(kind, device="cpu"):
    if kind == "plain":
        return None
    positions = torch.arange(LENGTH, device=device).expand(BATCH, -1)
    if kind == "positions":
        return Places(positions)
    begins = torch.zeros(BATCH, LENGTH, dtype=torch.long, device=device)
    begins[0, [0, 5, 6, 20]] = 1
    begins[1, [3]] = 1  # the last row is of one document, as the next row's first
    return Places(positions, begins.cumsum(1))


def compare(tensors, where, visibility, bounds):
    results = []
    for core in (Eager(), VarLen()):
        out = core(*tensors, where, visibility=visibility)
        weights = torch.arange(out.numel(), device=out.device).view(out.shape) % 7
        gradients = torch.autograd.grad((out.float() * weights).sum(), tensors)
        results.append([out, *gradients])
    for wanted, got in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, **bounds)


@KINDS
@SIGHTS
def test_sequences_are_what_queries_see(naive, visibility, kind):
    compare(inputs(), places(kind), visibility, {})


@pytest.mark.parametrize("kv_heads", [1, 4])
@pytest.mark.parametrize(("key_dim", "value_dim"), [(16, 8), (8, 16), (12, 12), (24, 16)])
def test_heads_of_any_size_are_made_fit(naive, kv_heads, key_dim, value_dim):
    tensors = inputs(kv_heads=kv_heads, key_dim=key_dim, value_dim=value_dim)
    compare(tensors, places("documents"), Visibility(window=5), {})


def test_a_kernel_need_not_be_told_of_grouped_queries(monkeypatch):
    """As that of torch 2.11, which has no such argument."""

    def kernel(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size):
        lengths = (cu_seq_q, cu_seq_k, max_q, max_k)
        named = {"scale": scale, "window_size": window_size}
        return naive_varlen(q, k, v, *lengths, **named, enable_gqa=True)

    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    compare(inputs(), places("documents"), Visibility(), {})


def test_sequences_end_with_documents_chunks_and_rows(naive):
    VarLen()(*inputs(), places("documents"))
    VarLen()(*inputs(), visibility=Visibility(chunk=10))
    VarLen()(*inputs(), places("documents"), visibility=Visibility(chunk=10))
    documents, chunks, both = (x.tolist() for x in naive)
    # Filled up to a power of two with empty ones.
    assert documents == [0, 5, 6, 20, 24, 27, 48, 72, 72]
    assert chunks == [0, 10, 20, 24, 34, 44, 48, 58, 68, 72]
    ends = [0, 5, 6, 10, 20, 24, 27, 34, 44, 48, 58, 68, 72]
    assert both == ends + [72] * (17 - len(ends))


def test_what_it_cannot_do_is_refused(naive):
    q, k, v = inputs()
    with pytest.raises(ValueError, match="no sink"):
        VarLen()(q, k, v, sink_H=torch.zeros(HEADS))
    with pytest.raises(ValueError, match="3 queries, 24 keys"):
        VarLen()(q[:, -3:], k, v)
    with pytest.raises(ValueError, match="24 queries, 24 keys"):
        VarLen()(q, k, v, places("documents"), places("documents"))
    with pytest.raises(
        UsageError, match="core=VarLen: expected a core other than VarLen with a sink"
    ):
        built_model(tiny("tag:AttentionCore=@varlen_attention()", recipe="gpt_oss_debug"))


@pytest.mark.parametrize("documents", [False, True])
def test_a_model_counts_lengths_once_for_all_that_see_alike(naive, documents):
    edits = ["set:model.layers[::2].attention.window=9", "set:model.layers[1].attention.chunk=5"]
    core = "tag:AttentionCore=@varlen_attention()"
    tokens = torch.randint(0, 200, (2, 32), generator=torch.Generator().manual_seed(0))
    of = (tokens % 7 == 0).cumsum(1) if documents else None
    model = built_model(tiny(*edits, core))
    logits = model(tokens, documents_BL=of)
    assert len(naive) == len(model.layers)
    kinds = {block.attention.visibility for block in model.layers}
    assert len({id(x) for x in naive}) == len(kinds) > 1
    torch.testing.assert_close(logits, built_model(tiny(*edits))(tokens, documents_BL=of))


def test_arguments_are_those_of_the_kernel():
    """Without a device: upstream's operator tells shapes alone."""
    tensors = inputs("meta", torch.bfloat16, value_dim=8)
    out = VarLen()(*tensors, visibility=Visibility(window=5, chunk=10))
    assert (out.shape, out.dtype) == ((BATCH, LENGTH, HEADS, 8), torch.bfloat16)
    gradients = torch.autograd.grad(out.sum(), tensors)
    assert [g.shape for g in gradients] == [x.shape for x in tensors]


@pytest.mark.cuda
@KINDS
@SIGHTS
@pytest.mark.parametrize("kv_heads", [2, 4])
@pytest.mark.parametrize("value_dim", [16, 8])
def test_the_kernel_has_the_gradients_of_eager(visibility, kind, kv_heads, value_dim):
    tensors = inputs("cuda", torch.bfloat16, kv_heads=kv_heads, value_dim=value_dim)
    # Bounds of bfloat16, whose gradients are sums of up to 24 terms of size 6.
    compare(tensors, places(kind, "cuda"), visibility, {"rtol": 3e-2, "atol": 2e-1})
