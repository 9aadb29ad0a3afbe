"""Attention over places against softmax written out, and FlexAttention against both."""

import math

import pytest
import torch

from nanigpt.models.attention_core import FlexAttention, Places, ScaledDotProduct
from tests.support import tiny

BATCH, LENGTH, HEADS, KV_HEADS, DIM = 2, 24, 4, 2, 16


def inputs(device="cpu", *, gradients=False):
    generator = torch.Generator().manual_seed(0)
    shapes = [(BATCH, LENGTH, heads, DIM) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    return [
        torch.randn(s, generator=generator).to(device).requires_grad_(gradients) for s in shapes
    ]


def places(kind, device="cpu"):
    if kind == "plain":
        return None
    positions = torch.arange(LENGTH, device=device).expand(BATCH, -1)
    if kind == "shuffled":  # as context parallelism has them
        positions = positions.flip(1)
        return Places(positions)
    documents = (positions + torch.tensor([[0], [3]], device=device)) // 7
    return Places(positions, documents)


def written_out(q, k, v, where):
    """Softmax over what each query sees, loop by loop."""
    out = torch.empty_like(q)
    for b in range(BATCH):
        for i in range(LENGTH):
            position = where.positions_BL[b] if where else torch.arange(LENGTH)
            seen = position <= position[i]
            if where and where.documents_BL is not None:
                seen = seen & (where.documents_BL[b] == where.documents_BL[b, i])
            for h in range(HEADS):
                g = h // (HEADS // KV_HEADS)
                scores = k[b, seen, g] @ q[b, i, h] / math.sqrt(DIM)
                out[b, i, h] = scores.softmax(0) @ v[b, seen, g]
    return out


@pytest.mark.parametrize("kind", ["plain", "shuffled", "documents"])
@pytest.mark.parametrize("core", [ScaledDotProduct(), FlexAttention()], ids=["sdpa", "flex"])
def test_against_softmax_written_out(core, kind):
    q, k, v = inputs()
    where = places(kind)
    torch.testing.assert_close(core(q, k, v, where), written_out(q, k, v, where))


@pytest.mark.parametrize("core", [ScaledDotProduct(), FlexAttention()], ids=["sdpa", "flex"])
def test_last_queries_see_all_keys(core):
    q, k, v = inputs()
    torch.testing.assert_close(core(q[:, -3:], k, v), core(q, k, v)[:, -3:])


@pytest.mark.cuda
@pytest.mark.parametrize("kind", ["plain", "documents"])
def test_flex_attention_has_the_gradients_of_sdpa(kind):
    gradients = []
    for core in (ScaledDotProduct(), FlexAttention()):
        tensors = inputs("cuda", gradients=True)
        core(*tensors, places(kind, "cuda")).square().sum().backward()
        gradients.append([x.grad for x in tensors])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)  # TF32 in the generated kernel


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
