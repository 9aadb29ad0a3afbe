"""Soft caps of scores and of logits against their formula, and who refuses them."""

import pytest
import torch
from torch.nn import functional as F

from nanigpt.config.check.build import build
from nanigpt.errors import UsageError
from nanigpt.models.attention_core import Eager, FlexAttention
from nanigpt.models.embedding import Embedding, Head, TiedHead
from nanigpt.models.generate import generate
from nanigpt.models.huggingface.families import family_of
from nanigpt.models.init import TruncatedNormal
from nanigpt.models.soft_cap import soft_cap
from nanigpt.models.visibility import Visibility
from nanigpt.tasks.cross_entropy import CrossEntropy, LinearCrossEntropy
from tests.support import built_model, tiny

CAP = 1.5
IGNORED = -100


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_it_bounds_and_keeps_the_dtype():
    x = torch.tensor([-1e4, -1.0, 0.0, 1e-3, 1e4])
    y = soft_cap(x, CAP)
    torch.testing.assert_close(y, CAP * torch.tanh(x / CAP))
    assert y.abs().max() <= CAP
    assert soft_cap(x.bfloat16(), CAP).dtype == torch.bfloat16


@pytest.mark.parametrize("core", [Eager(), FlexAttention()], ids=["eager", "flex"])
@pytest.mark.parametrize("visibility", [Visibility(), Visibility(window=3)], ids=["all", "window"])
@pytest.mark.parametrize("sink", [False, True], ids=["", "sink"])
def test_scores_are_capped_before_the_softmax(core, visibility, sink):
    q, k, v = (3 * torch.randn(2, 8, heads, 4) for heads in (4, 2, 2))
    sink_H = torch.tensor([1.0, -3.0, 0.5, 4.0]) if sink else None
    out = core(q, k, v, visibility=visibility, sink_H=sink_H, soft_cap=CAP)
    for head in range(4):
        score = torch.einsum("blk,bsk->bls", q[:, :, head], k[:, :, head // 2]) / 4**0.5
        score = CAP * torch.tanh(score / CAP)
        i, j = torch.arange(8)[:, None], torch.arange(8)
        seen = (j <= i) & (j > i - (visibility.window or 8))
        score = score.masked_fill(~seen, -torch.inf)
        weight = score.exp()
        total = weight.sum(-1, keepdim=True) + (sink_H[head].exp() if sink else 0.0)
        expected = (weight / total) @ v[:, :, head // 2]
        torch.testing.assert_close(out[:, :, head], expected)


def capped(*edits):
    return tiny("set:model.layers[*].attention.score_soft_cap=0.5", *edits)


def test_a_model_caps_scores_in_training_and_from_a_cache():
    model, plain = built_model(capped()), built_model(tiny())
    tokens = torch.randint(256, (2, 12))
    with torch.no_grad():
        logits, others = model(tokens), plain(tokens)
    assert isinstance(model.layers[0].attention.core, Eager)
    assert (logits - others).abs().max() > 1e-3
    for caching in (True, False):
        made = generate(model, [1, 2, 3], max_new_tokens=8, temperature=0.0, use_cache=caching)
        if caching:
            text = list(made)
    assert list(made) == text


def test_a_core_that_cannot_cap_is_refused_by_name():
    edit = "set:model.layers[1].attention.core=@{}()"
    for name in ("eager_attention", "flex_attention"):
        build(capped(edit.format(name)))
    for name, core in (("scaled_dot_product", "ScaledDotProduct"), ("varlen_attention", "VarLen")):
        message = f"core={core}: expected FlexAttention or Eager, which can cap scores at 0.5"
        with pytest.raises(UsageError, match=message):
            build(capped(edit.format(name)))


@pytest.mark.parametrize("cap", [0.0, -1.0, float("inf")])
def test_caps_are_above_zero(cap):
    with pytest.raises(ValueError, match=f"soft_cap={cap}: expected more than 0"):
        Head(in_dim=4, out_dim=8, initializer=TruncatedNormal(std=1.0), soft_cap=cap)


def head_of(weight, *, tied):
    sizes = {"initializer": TruncatedNormal(std=1.0)}
    if tied:
        embedding = Embedding(vocab_size=weight.shape[0], dim=weight.shape[1], **sizes)
        head = TiedHead(embedding=embedding, soft_cap=CAP)
    else:
        head = Head(in_dim=weight.shape[1], out_dim=weight.shape[0], soft_cap=CAP, **sizes)
    head.weight = torch.nn.Parameter(weight.clone())
    return head


@pytest.mark.parametrize("tied", [False, True], ids=["own", "tied"])
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
@pytest.mark.parametrize(
    "loss", [CrossEntropy, lambda **z: LinearCrossEntropy(chunk_size=7, **z)], ids=["all", "chunks"]
)
def test_losses_are_of_capped_logits(loss, z_loss, tied):
    x, weight = 2 * torch.randn(3, 5, 8), torch.randn(40, 8)
    labels = torch.randint(40, (3, 5))
    labels[0, 2] = IGNORED
    head, mine = head_of(weight, tied=tied), x.clone().requires_grad_()
    value = loss(z_loss=z_loss)(head, mine, labels)
    value.backward()

    x64, w64 = x.double().requires_grad_(), weight.double().requires_grad_()
    logits = (CAP * torch.tanh(x64 @ w64.T / CAP)).flatten(0, 1)
    expected = F.cross_entropy(logits, labels.flatten(), reduction="sum", ignore_index=IGNORED)
    kept = labels.flatten() != IGNORED
    expected = expected + z_loss * logits.logsumexp(-1)[kept].square().sum()
    expected.backward()
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mine.grad.double(), x64.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(head.weight.grad.double(), w64.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(head(x), soft_cap(x @ weight.T, CAP))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ("model.layers[0].attention.score_soft_cap=50.0", "attention.score_soft_cap is 50.0"),
        ("model.head.soft_cap=30.0", "head.soft_cap is 30.0: expected None"),
    ],
)
def test_families_without_caps_refuse_them(edit, message):
    cfg = tiny(f"set:{edit}", recipe="llama3_1b")
    with pytest.raises(UsageError, match=message):
        family_of(build(cfg.model))
