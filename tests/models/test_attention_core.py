"""Attention cores against softmax written out loop by loop, and against each other."""

import math

import pytest
import torch

from nanigpt.models.attention_core import Eager, FlexAttention, ScaledDotProduct
from nanigpt.models.visibility import Places, Visibility
from tests.support import tiny

BATCH, LENGTH, HEADS, KV_HEADS, DIM = 2, 24, 4, 2, 16

CORES = pytest.mark.parametrize(
    "core", [Eager(), ScaledDotProduct(), FlexAttention()], ids=["eager", "sdpa", "flex"]
)
SIGHTS = pytest.mark.parametrize(
    "visibility",
    [
        Visibility(),
        Visibility(window=1),
        Visibility(window=5),
        Visibility(chunk=7),
        Visibility(window=4, chunk=10),
        Visibility(window=LENGTH, chunk=LENGTH),  # as if there were none
    ],
    ids=lambda v: f"{v.window}-{v.chunk}",
)
SINKS = pytest.mark.parametrize("sink", [False, True], ids=["", "sink"])


def inputs(device="cpu", *, gradients=False):
    generator = torch.Generator().manual_seed(0)
    shapes = [(BATCH, LENGTH, heads, DIM) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    return [
        torch.randn(s, generator=generator).to(device).requires_grad_(gradients) for s in shapes
    ]


def sinks(given, device="cpu"):
    return torch.tensor([1.0, -3.0, 0.5, 4.0], device=device) if given else None


def places(kind, device="cpu"):
    if kind == "plain":
        return None
    positions = torch.arange(LENGTH, device=device).expand(BATCH, -1)
    if kind == "shuffled":  # as context parallelism has them
        positions = positions.flip(1)
        return Places(positions)
    documents = (positions + torch.tensor([[0], [3]], device=device)) // 7
    return Places(positions, documents)


def written_out(q, k, v, where, visibility, sink_H):
    """Softmax over what each query sees, loop by loop."""
    out = torch.empty_like(q)
    for b in range(BATCH):
        position = (where.positions_BL[b] if where else torch.arange(LENGTH)).tolist()
        for i in range(LENGTH):
            seen = [j for j in range(LENGTH) if position[j] <= position[i]]
            if visibility.window:
                seen = [j for j in seen if position[j] > position[i] - visibility.window]
            if visibility.chunk:
                begin = position[i] - position[i] % visibility.chunk
                seen = [j for j in seen if position[j] >= begin]
            if where and where.documents_BL is not None:
                document = where.documents_BL[b]
                seen = [j for j in seen if document[j] == document[i]]
            for h in range(HEADS):
                g = h // (HEADS // KV_HEADS)
                weights = (k[b, seen, g] @ q[b, i, h] / math.sqrt(DIM)).exp()
                total = weights.sum() + (0.0 if sink_H is None else sink_H[h].exp())
                out[b, i, h] = (weights / total) @ v[b, seen, g]
    return out


@pytest.mark.parametrize("kind", ["plain", "shuffled", "documents"])
@SINKS
@SIGHTS
@CORES
def test_against_softmax_written_out(core, visibility, sink, kind):
    q, k, v = inputs()
    where, sink_H = places(kind), sinks(sink)
    got = core(q, k, v, where, visibility=visibility, sink_H=sink_H)
    torch.testing.assert_close(got, written_out(q, k, v, where, visibility, sink_H))


@SINKS
@SIGHTS
@CORES
@pytest.mark.parametrize("n", [1, 3])
def test_last_queries_see_what_they_saw_among_all(core, visibility, sink, n):
    q, k, v = inputs()
    more = {"visibility": visibility, "sink_H": sinks(sink)}
    torch.testing.assert_close(core(q[:, -n:], k, v, **more), core(q, k, v, **more)[:, -n:])


@pytest.mark.parametrize("kind", ["plain", "documents"])
@pytest.mark.parametrize("width", [3, 8, 24])
@SINKS
@CORES
def test_values_may_have_another_width_than_keys(core, sink, width, kind):
    """Each of their features is summed alone: those of a wide value can be had piece by piece."""
    q, k, _ = inputs()
    v = torch.randn(BATCH, LENGTH, KV_HEADS, 2 * DIM, generator=torch.Generator().manual_seed(1))
    more = {"visibility": Visibility(window=9), "sink_H": sinks(sink)}
    got = core(q, k, v[..., :width], places(kind), **more)
    wanted = [written_out(q, k, x, places(kind), *more.values()) for x in v.split(DIM, -1)]
    torch.testing.assert_close(got, torch.cat(wanted, -1)[..., :width])


@pytest.mark.parametrize("kind", ["plain", "documents"])
@SINKS
@SIGHTS
def test_sdpa_has_the_gradients_of_eager(visibility, sink, kind):
    compare_gradients(ScaledDotProduct(), visibility, sink, kind, "cpu", {})


@pytest.mark.cuda
@pytest.mark.parametrize("kind", ["plain", "documents"])
@SINKS
@SIGHTS
@pytest.mark.parametrize("core", [ScaledDotProduct(), FlexAttention()], ids=["sdpa", "flex"])
def test_fused_cores_have_the_gradients_of_eager(core, visibility, sink, kind):
    # TF32 in the generated kernel
    compare_gradients(core, visibility, sink, kind, "cuda", {"rtol": 2e-2, "atol": 2e-2})


def compare_gradients(core, visibility, sink, kind, device, bounds):
    gradients = []
    for each in (Eager(), core):
        tensors = inputs(device, gradients=True)
        sink_H = sinks(sink, device)
        if sink:
            tensors.append(sink_H.requires_grad_())
        where = places(kind, device)
        out = each(*tensors[:3], where, visibility=visibility, sink_H=sink_H)
        out.square().sum().backward()
        gradients.append([x.grad for x in tensors])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(b, a, **bounds)


@SINKS
def test_sdpa_follows_bf16(sink):
    q, k, v = (x.bfloat16() for x in inputs())
    more = {"visibility": Visibility(window=5), "sink_H": sinks(sink)}
    got, want = (core(q, k, v, **more) for core in (ScaledDotProduct(), Eager()))
    assert got.dtype == want.dtype == torch.bfloat16
    torch.testing.assert_close(got, want, rtol=2e-2, atol=2e-2)


def test_documents_do_not_see_each_other(tmp_path):
    """The logits of a document in a packed sequence are those that it has alone, but for RoPE, whose
    scores depend on differences of positions only."""
    from nanigpt.config.build import build
    from tests.support import built_model

    cfg = tiny("set:data.mask_documents=True")
    data = build(cfg.data)
    end = data.tokenizer.end_id
    row = [end, 7, 8, 9, end, 20, 21, end, 30, 31, 32, 33]
    model = built_model(cfg)
    tokens = torch.tensor([row])
    documents = (tokens == end).cumsum(1)
    with torch.no_grad():
        packed = model(tokens, documents_BL=documents)[0]
        alone = torch.cat([model(torch.tensor([part]))[0] for part in (row[:4], row[4:7], row[7:])])
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(model(tokens)[0], alone, atol=1e-3)


def test_batches_number_their_documents(tmp_path):
    from nanigpt.config.build import build

    path = tmp_path / "short.jsonl"
    path.write_text("".join(f'{{"text": "document {i}"}}\n' for i in range(300)))
    data = build(tiny(f"set:data.corpus.path={path}", "set:data.mask_documents=True").data)
    data.setup()
    batch = data.train_batch(range(3), seed=0)
    ends = batch.tokens_BL == data.tokenizer.end_id
    assert ends.sum() > 3
    assert torch.equal(batch.documents_BL.diff(dim=1), ends[:, 1:].long())
    assert build(tiny().data).mask_documents is False
