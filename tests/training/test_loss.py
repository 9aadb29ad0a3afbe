"""Losses against their formula in float64, one against the other, and what they keep in memory."""

import fiddle as fdl
import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from nanigpt.config.check.build import build
from nanigpt.data.batch import IGNORED, TokenBatch
from nanigpt.errors import UsageError
from nanigpt.models.init import Constant, TruncatedNormal
from nanigpt.models.linear import Linear
from nanigpt.parallel.compile import Compile
from nanigpt.parallel.world import start_world
from nanigpt.tasks.cross_entropy import CrossEntropy, LinearCrossEntropy
from nanigpt.training.loop import evaluate, train_step
from nanigpt.training.setup import Session, new_session, set_up_model
from tests.parallel.split_loss import CASES
from tests.support import succeed, tiny, torchrun

BATCH, LENGTH, DIM, VOCAB = 3, 13, 16, 50
TOKENS = BATCH * LENGTH


def random_parts(*, vocab=VOCAB, dim=DIM, tokens=LENGTH, rows=BATCH):
    """Hidden states, weight, bias and labels, some of which are ignored."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(rows, tokens, dim, generator=random)
    weight = 0.5 * torch.randn(vocab, dim, generator=random)
    bias = 0.1 * torch.randn(vocab, generator=random)
    labels = torch.randint(vocab, (rows, tokens), generator=random)
    labels[0, 2] = labels[0, 3] = labels[-1, -1] = IGNORED
    return x, weight, bias, labels


def head_of(weight, bias=None):
    initializer = TruncatedNormal(std=1.0)
    with_bias = None if bias is None else Constant(value=0.0)
    head = Linear(
        in_dim=weight.shape[1], out_dim=weight.shape[0], initializer=initializer, bias=with_bias
    )
    head.weight = torch.nn.Parameter(weight.clone())
    head.bias = None if bias is None else torch.nn.Parameter(bias.clone())
    return head


def loss_and_gradients(loss, x, weight, bias, labels):
    head, x = head_of(weight, bias), x.clone().requires_grad_()
    value = loss(head, x, labels)
    value.backward()
    gradients = [x.grad, head.weight.grad] + ([] if bias is None else [head.bias.grad])
    return value.detach(), gradients


def by_formula(x, weight, bias, labels, z_loss):
    """In float64, by autograd."""
    parts = [p.double().requires_grad_() for p in (x, weight, bias)]
    logits = F.linear(*parts).flatten(0, 1)
    valid = labels.flatten() != IGNORED
    denominators = logits[valid].logsumexp(1)
    own = logits[valid].gather(1, labels.flatten()[valid][:, None])[:, 0]
    value = (denominators - own).sum() + z_loss * denominators.square().sum()
    return value.detach(), torch.autograd.grad(value, parts)


def relative(got, want):
    return ((got.double() - want).norm() / want.norm()).item()


def each_loss(z_loss):
    chunked = [LinearCrossEntropy(chunk_size=n, z_loss=z_loss) for n in (1, 7, TOKENS, 1000)]
    return [CrossEntropy(z_loss=z_loss), *chunked]


@pytest.mark.parametrize("z_loss", [0.0, 0.01])
def test_values_and_gradients_are_those_of_the_formula(z_loss):
    parts = random_parts()
    want, gradients = by_formula(*parts, z_loss)
    if not z_loss:
        x, weight, bias, labels = parts
        logits = F.linear(x.double(), weight.double(), bias.double()).flatten(0, 1)
        expected = F.cross_entropy(logits, labels.flatten(), reduction="sum")
        torch.testing.assert_close(want, expected)
    for loss in each_loss(z_loss):
        got, found = loss_and_gradients(loss, *parts)
        assert got.dtype == torch.float32 and relative(got, want) < 1e-6
        assert len(found) == 3
        for gradient, expected in zip(found, gradients, strict=True):
            assert relative(gradient, expected) < 1e-6
        ignored = parts[-1] == IGNORED
        assert not found[0][ignored].any() and found[0][~ignored].any()


@pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="needs torch 2.13")
def test_upstream_agrees():
    x, weight, bias, labels = random_parts()
    parts = [x.flatten(0, 1).requires_grad_(), weight.requires_grad_(), bias.requires_grad_()]
    want = F.linear_cross_entropy(
        parts[0], weight, labels.flatten(), linear_bias=bias, ignore_index=IGNORED, reduction="sum"
    )
    gradients = torch.autograd.grad(want, parts)
    got, found = loss_and_gradients(
        LinearCrossEntropy(chunk_size=10), *(p.detach() for p in (x, weight, bias)), labels
    )
    torch.testing.assert_close(got, want.detach(), rtol=1e-6, atol=0)
    for gradient, expected in zip(found, gradients, strict=True):
        torch.testing.assert_close(gradient.view_as(expected), expected, rtol=1e-5, atol=1e-6)


def test_nothing_to_learn_is_no_loss_and_no_gradient():
    x, weight, bias, labels = random_parts()
    for loss in each_loss(0.01):
        got, found = loss_and_gradients(loss, x, weight, bias, torch.full_like(labels, IGNORED))
        assert got == 0
        assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in found)


def test_logits_far_from_zero_are_no_trouble():
    x, weight, bias, labels = random_parts()
    parts = (300 * x, weight, bias, labels)
    want, _ = by_formula(*parts, 0.0)
    for loss in each_loss(0.0):
        got, found = loss_and_gradients(loss, *parts)
        assert relative(got, want) < 1e-6
        assert all(gradient.isfinite().all() for gradient in found)


def test_of_bfloat16_the_loss_is_float32_and_sums_are_too():
    """A sum of 512 equal terms in bfloat16 would end at half of it."""
    parts = [p.bfloat16() for p in random_parts(rows=4, tokens=128)[:3]]
    labels = torch.full((4, 128), 7)
    parts[0][:] = parts[0][:1, :1]
    want, gradients = by_formula(*parts, labels, 0.01)
    for loss in (CrossEntropy(z_loss=0.01), LinearCrossEntropy(chunk_size=1, z_loss=0.01)):
        got, found = loss_and_gradients(loss, *parts, labels)
        assert got.dtype == torch.float32 and relative(got, want) < 5e-3
        assert {gradient.dtype for gradient in found} == {torch.bfloat16}
        assert all(relative(g, w) < 0.02 for g, w in zip(found, gradients, strict=True))


class Seen(TorchDispatchMode):
    """Elements of the largest tensor that an operation made, and how many products there were."""

    largest = products = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        sizes = [x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        self.largest = max([self.largest, *sizes])
        self.products += function.__name__.split(".")[0] in ("mm", "addmm", "addmm_")
        return out


def test_no_tensor_has_the_logits_of_all_tokens():
    x, weight, _, labels = random_parts(vocab=4000, dim=8, tokens=40)
    seen = {}
    for loss in (CrossEntropy(), LinearCrossEntropy(chunk_size=16, z_loss=0.01)):
        with Seen() as seen[type(loss)]:
            loss_and_gradients(loss, x, weight, None, labels)
    assert seen[CrossEntropy].largest == 120 * 4000
    assert seen[LinearCrossEntropy].largest == 16 * 4000  # of a chunk; the weight has 8 x 4000


def test_nothing_is_computed_that_is_not_wanted():
    x, weight, _, labels = random_parts()
    loss, head = LinearCrossEntropy(chunk_size=10), head_of(weight)  # four chunks
    with Seen() as forward, torch.no_grad():
        alone = loss(head, x, labels)
    head.requires_grad_(False)
    with Seen() as frozen:
        loss(head, x.requires_grad_(), labels).backward()
    head.requires_grad_(True)
    with Seen() as all_of_it:
        value = loss(head, x, labels)
        value.backward()
    assert torch.equal(alone, value)
    assert [seen.products for seen in (forward, frozen, all_of_it)] == [4, 8, 12]


def test_a_second_derivative_is_refused():
    x, weight, _, labels = random_parts()
    value = LinearCrossEntropy()(head_of(weight), x.requires_grad_(), labels)
    with pytest.raises(RuntimeError, match="no second derivative.*use CrossEntropy"):
        torch.autograd.grad(value, x, create_graph=True)


def test_gradients_can_be_asked_for_one_after_the_other():
    """As a pipeline that computes those of weights later does."""
    x, weight, bias, labels = random_parts()
    loss, head = LinearCrossEntropy(chunk_size=10), head_of(weight, bias)
    _, gradients = loss_and_gradients(loss, x, weight, bias, labels)
    value = 3 * loss(head, x.requires_grad_(), labels)
    found = [
        torch.autograd.grad(value, part, retain_graph=True)[0]
        for part in (x, head.weight, head.bias)
    ]
    for gradient, expected in zip(found, gradients, strict=True):
        torch.testing.assert_close(gradient, 3 * expected)


def test_it_compiles_as_one_graph_and_can_be_recomputed():
    x, weight, bias, labels = random_parts()
    plain, compiled = (LinearCrossEntropy(chunk_size=10, z_loss=0.01) for _ in range(2))
    compiled.compute = torch.compile(compiled.compute, backend="aot_eager", fullgraph=True)
    chunks = LinearCrossEntropy(chunk_size=10, z_loss=0.01)
    chunks.compile(Compile(backend="aot_eager").function)

    def recomputed(head, x, labels):
        return checkpoint(plain, head, x, labels, use_reentrant=False)

    want, gradients = loss_and_gradients(plain, x, weight, bias, labels)
    for loss in (compiled, chunks, recomputed):
        got, found = loss_and_gradients(loss, x, weight, bias, labels)
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(found, gradients)
    with torch.no_grad():
        head = head_of(weight, bias)
        torch.testing.assert_close(compiled(head, x, labels), plain(head, x, labels))


def steps_of(cfg, batches):
    """Rows of train_step, and all gradients of the last one."""
    trainer = build(cfg)
    session = new_session(trainer, start_world("cpu"))
    gradients = {}

    def look(*_):
        gradients.update({n: p.grad.clone() for n, p in trainer.model.named_parameters()})

    session.optimizer.register_step_pre_hook(look)
    return [train_step(session, batch) for batch in batches], gradients


def some_batch(rows, seed):
    random = torch.Generator().manual_seed(seed)
    tokens = torch.randint(512, (rows, 33), generator=random)
    labels = tokens[:, 1:].clone()
    labels[torch.rand(labels.shape, generator=random) < 0.2] = IGNORED
    return TokenBatch(tokens[:, :-1].clone(), labels)


@pytest.mark.parametrize(
    "recipe, edits", [("llama3_debug", ["fiddler:multi_token(2)"]), ("llama3_1b", [])]
)
def test_a_run_is_the_same_with_either_loss(recipe, edits):
    """With a head of its own and further tokens; and with a tied one, whose embedding gets both
    gradients."""
    batches = [[some_batch(3, 2 * step), some_batch(1, 2 * step + 1)] for step in range(4)]
    runs = [
        steps_of(tiny(*edits, f"set:task.loss=@{loss}", recipe=recipe), batches)
        for loss in ("cross_entropy(z_loss=0.001)", "linear_cross_entropy(20, z_loss=0.001)")
    ]
    (plain, gradients), (chunked, found) = runs
    for a, b in zip(plain, chunked, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            torch.testing.assert_close(b[name], a[name], rtol=2e-6, atol=0)
    assert found.keys() == gradients.keys()
    for name in found:
        assert relative(found[name], gradients[name].double()) < 1e-4, name


def test_accumulation_weighs_every_token_alike():
    """Also where microbatches have many, few and no tokens to learn."""
    whole = some_batch(6, 0)
    whole.labels_BL[2, 3:] = whole.labels_BL[3:5] = IGNORED
    pieces = [
        TokenBatch(whole.tokens_BL[part], whole.labels_BL[part])
        for part in (slice(0, 2), slice(2, 3), slice(3, 5), slice(5, 6))
    ]
    cfg = tiny("set:task.loss=@linear_cross_entropy(20, z_loss=0.001)")
    ([one], gradients), ([many], found) = (steps_of(cfg, [b]) for b in ([whole], pieces))
    torch.testing.assert_close(many, one, rtol=1e-5, atol=0)
    for name in found:
        assert relative(found[name], gradients[name].double()) < 1e-5, name


def test_validation_is_without_z_loss():
    seen = []
    z_loss = ("@cross_entropy(z_loss=0.1)", "@linear_cross_entropy(z_loss=0.1)")
    for loss in ("@linear_cross_entropy()", *z_loss):
        trainer = build(tiny(f"set:task.loss={loss}"))
        trainer.data.setup()
        parallel = set_up_model(trainer, start_world("cpu"))
        optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.0)
        row = train_step(Session(trainer, parallel, optimizer), [some_batch(2, 0)])
        seen.append((row["loss"].item(), evaluate(trainer, parallel)["val_loss"]))
    (without, validation), *others = seen
    for trained, validated in others:
        assert trained > without + 1
        assert validated == pytest.approx(validation, rel=1e-6)


@pytest.mark.parametrize(
    "edit, message",
    [
        ("set:task.loss.chunk_size=0", "chunk_size=0: expected at least 1 token"),
        ("set:task.loss.z_loss=-1", "z_loss=-1.0: expected 0 or more"),
        ("set:task.loss=@cross_entropy(-1)", "z_loss=-1.0: expected 0 or more"),
    ],
)
def test_wrong_arguments_are_refused(edit, message):
    with pytest.raises(UsageError, match=message):
        build(tiny(edit))


def test_a_head_in_float8_needs_its_own_product():
    trainer = build(tiny())
    trainer.model.head.float8 = "rowwise"
    with pytest.raises(UsageError, match="float8='rowwise'.*LinearCrossEntropy"):
        trainer.check(1)
    trainer.task.loss = CrossEntropy()
    trainer.check(1)


@pytest.mark.parametrize(
    "cases",
    [
        [case for case in CASES if "compiled" not in case],
        pytest.param(["chunked compiled"], marks=pytest.mark.slow),
    ],
)
def test_a_vocabulary_split_over_ranks_gives_the_same(cases, tmp_path):
    succeed(torchrun(2, "-m", "tests.parallel.split_loss", str(tmp_path / "done"), *cases))
    assert (tmp_path / "done").read_text().split("\n") == cases


@pytest.mark.cuda
def test_on_a_gpu_chunks_add_up_in_float32():
    x, weight, bias, labels = random_parts(vocab=4096, dim=64, tokens=256, rows=2)
    parts = [p.bfloat16() for p in (x, weight, bias)]
    want, gradients = by_formula(*parts, labels, 0.001)
    on_gpu = [p.cuda() for p in (*parts, labels)]
    loss = LinearCrossEntropy(chunk_size=100, z_loss=0.001)
    got, found = loss_and_gradients(loss, *on_gpu)
    assert got.dtype == torch.float32 and relative(got.cpu(), want) < 5e-3
    for gradient, expected in zip(found, gradients, strict=True):
        assert relative(gradient.cpu(), expected) < 0.02


class Other:
    """A loss of another package, which knows nothing of products or of split logits."""

    def __call__(self, head, x_BLD, labels_BL):
        return F.cross_entropy(
            head(x_BLD).flatten(0, 1), labels_BL.flatten(), ignore_index=IGNORED, reduction="sum"
        )


def test_a_head_that_takes_no_product_fits_a_loss_that_brings_none():
    cfg = tiny()
    sizes = cfg.model.head.in_dim, cfg.model.head.out_dim
    cfg.model.head = fdl.Config(torch.nn.Linear, *sizes, bias=False)
    (problem,) = build(cfg).problems(1)
    assert "a head for LinearCrossEntropy that is called with (x_BLD, product)" in str(problem)
    assert problem.fix.argument == "loss" and problem.fix.value is CrossEntropy
    for loss in (CrossEntropy, Other):
        cfg.task.loss = fdl.Config(loss)
        assert build(cfg).problems(1) == []
