"""Multi-token prediction against a reference that goes from position to position."""

import fiddle as fdl
import pytest
import torch

from nanigpt.config.check.build import build
from nanigpt.config.check.static import problems
from nanigpt.config.compose.flag import compose
from nanigpt.data.batch import IGNORED, TokenBatch
from nanigpt.errors import UsageError
from nanigpt.fiddlers.objective import multi_token
from nanigpt.models.feed_forward import FeedForward
from nanigpt.models.multi_token import PredictionDepth
from nanigpt.models.visibility import Places
from nanigpt.parallel.compile import Compile
from nanigpt.parallel.world import start_world
from nanigpt.tasks.language_modeling import labels_ahead
from nanigpt.training.loop import evaluate, train_step
from nanigpt.training.setup import Session, set_up_model
from tests.support import built_model, tiny, train

LENGTH = 24


def some_batch(*, rows=2, documents=True) -> TokenBatch:
    """Random tokens; documents of one token up, and some that are not to be learned."""
    random = torch.Generator().manual_seed(0)
    tokens = torch.randint(512, (rows, LENGTH + 1), generator=random)
    labels = tokens[:, 1:].clone()
    labels[0, 3] = labels[1, 17] = IGNORED
    documents_BL = (torch.rand(rows, LENGTH, generator=random) < 0.2).cumsum(1)
    return TokenBatch(
        tokens[:, :-1].clone(), labels, documents_BL=documents_BL if documents else None
    )


def trainer_with_model(*edits, recipe="llama3_debug"):
    trainer = build(tiny(*edits, recipe=recipe))
    return trainer, set_up_model(trainer, start_world("cpu"))


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def naive_losses(model, batch):
    """Sums over tokens of cross-entropies: of the next ones, then of each depth. Here depths have
    only those positions that have a token ahead."""

    def rms_norm(x, norm):
        return x / (x.square().mean() + norm.eps).sqrt() * norm.weight

    sums = []
    for row, tokens in enumerate(batch.tokens_BL):
        document = None if batch.documents_BL is None else batch.documents_BL[row]

        def places(length, document=document):
            here = None if document is None else document[None, :length]
            return Places(torch.arange(length)[None], here)

        def cross_entropy(x, i, k, row=row, document=document, norm=model.norm):
            """Of position i at depth k, if that is learned."""
            label = batch.labels_BL[row, i + k]
            if label == IGNORED or (document is not None and document[i] != document[i + k]):
                return 0.0
            logits = model.head.weight @ rms_norm(x, norm)
            return logits.logsumexp(0) - logits[label]

        x = model.embedding.weight[tokens][None]
        for block in model.layers:
            x = block(x, None, places(LENGTH))
        losses = [sum(cross_entropy(x[0, i], i, 0) for i in range(LENGTH))]
        for k, depth in enumerate(model.multi_token.depths, start=1):
            pairs = []
            for i in range(LENGTH - k):
                token = rms_norm(model.embedding.weight[tokens[i + k]], depth.embedding_norm)
                known = rms_norm(x[0, i], depth.hidden_norm)
                pairs.append(depth.projection.weight @ torch.cat([token, known]))
            x = depth.block(torch.stack(pairs)[None], None, places(LENGTH - k))
            losses.append(
                sum(cross_entropy(x[0, i], i, k, norm=depth.norm) for i in range(LENGTH - k))
            )
        sums.append(losses)
    return [sum(column) for column in zip(*sums, strict=True)]


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("recipe", ["llama3_debug", "llama3_1b", "qwen3_moe_debug"])
def test_losses_and_gradients_equal_those_of_a_loop_over_positions(recipe, documents):
    trainer, parallel = trainer_with_model("fiddler:multi_token(2, 0.4)", recipe=recipe)
    model, batch = trainer.model, some_batch(documents=documents)
    with torch.no_grad():  # gains that differ, so that none can stand for another
        for depth in model.multi_token.depths:
            for i, norm in enumerate((depth.embedding_norm, depth.hidden_norm, depth.norm)):
                norm.weight.add_(torch.linspace(0, 0.3 * (i + 1), norm.dim))
    tokens = (batch.labels_BL != IGNORED).sum()
    pieces = [
        TokenBatch(**{n: x[row : row + 1] for n, x in batch.columns().items()}) for row in range(2)
    ]
    got = parallel.forward_backward(trainer.task, pieces, tokens.float())
    found = gradients(model)
    model.zero_grad()
    main, *further = (loss / tokens for loss in naive_losses(model, batch))
    (main + 0.4 / 2 * sum(further)).backward()
    torch.testing.assert_close(got["loss"], main.detach(), rtol=1e-5, atol=0)
    torch.testing.assert_close(
        got["multi_token_loss"], sum(further).detach() / 2, rtol=1e-5, atol=0
    )
    for name, want in gradients(model).items():
        assert want.norm() > 0, name
        torch.testing.assert_close(found[name], want, rtol=1e-4, atol=1e-6, msg=name)


def test_labels_are_of_the_same_document():
    labels = torch.tensor([[11, 12, 13, 14, 15, 16, IGNORED, 18]])
    documents = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2]])
    x = IGNORED
    assert labels_ahead(labels, 0, documents).tolist() == labels.tolist()
    assert labels_ahead(labels, 1).tolist() == [[12, 13, 14, 15, 16, x, 18, x]]
    # 13 is the first token of the next document, which is the end of this one.
    assert labels_ahead(labels, 1, documents).tolist() == [[12, 13, x, 15, x, x, 18, x]]
    assert labels_ahead(labels, 2, documents).tolist() == [[13, x, x, x, x, 18, x, x]]
    assert (
        labels_ahead(labels, 8, documents).tolist()
        == labels_ahead(labels, 9, documents).tolist()
        == [[x] * 8]
    )
    assert labels.tolist() == [[11, 12, 13, 14, 15, 16, x, 18]]


@pytest.mark.parametrize("recipe", ["llama3_debug", "llama3_1b", "qwen3_moe_debug"])
def test_weight_0_leaves_all_other_gradients_as_they_were(recipe):
    found = []
    for edits in ((), ("fiddler:multi_token(2, 0)",)):
        trainer, parallel = trainer_with_model(*edits, recipe=recipe)
        parallel.forward_backward(trainer.task, [some_batch()], torch.tensor(1.0))
        found.append(gradients(trainer.model))
    without, there = found
    for name, gradient in there.items():
        if name in without:
            assert torch.equal(gradient, without[name]), name
        else:
            assert name.startswith("multi_token.") and not gradient.any()
    assert there.keys() > without.keys()


def test_nothing_but_training_computes_or_feels_it(monkeypatch):
    """Not by a bit, though the text is evaluated and written by what it trained."""

    def refuse(*_):
        raise AssertionError("a further token was predicted")

    trainer, parallel = trainer_with_model("fiddler:multi_token")
    trainer.data.setup()
    optimizer = trainer.optimizer(trainer.model.named_parameters())
    train_step(Session(trainer, parallel, optimizer), [trainer.data.train_batch(range(8), seed=0)])
    other, plain = trainer_with_model()
    other.model.load_state_dict(
        {n: x for n, x in trainer.model.state_dict().items() if not n.startswith("multi_token.")}
    )
    other.data = trainer.data
    monkeypatch.setattr(PredictionDepth, "forward", refuse)
    tokens = some_batch().tokens_BL
    assert torch.equal(trainer.model(tokens), other.model(tokens))
    assert evaluate(trainer, parallel) == evaluate(other, plain)
    texts = [t.task.sampler.run(t.model, t.data.tokenizer) for t in (trainer, other)]
    assert texts[0] == texts[1]
    with pytest.raises(AssertionError, match="a further token"):
        trainer.model(tokens, ahead=True)


def test_its_loss_falls_and_is_told_apart(tmp_path):
    edits = ["set:global_batch_size=4", "set:evaluations[val].interval=100"]
    rows = train(tiny(*edits, "fiddler:multi_token", "fiddler:steps(100)"), tmp_path / "run")
    first, last = ([row["multi_token_loss"] for row in part] for part in (rows[:5], rows[-5:]))
    assert len(rows) == 100 and sum(last) < 0.6 * sum(first)
    plain = train(tiny(*edits, "fiddler:steps(2)"), tmp_path / "plain")
    assert rows[0]["loss"] == plain[0]["loss"]
    assert rows[0]["grad_norm"] > plain[0]["grad_norm"]
    assert "multi_token_loss" not in plain[0]


def test_its_mixtures_are_counted_and_balanced():
    trainer, parallel = trainer_with_model(
        "fiddler:multi_token(2)", "tag:BalanceRate=0.01", recipe="qwen3_moe_debug"
    )
    optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.0)
    row = train_step(Session(trainer, parallel, optimizer), [some_batch(), some_batch()])
    mixtures = [block.feed_forward for block in trainer.model.blocks()]
    assert row["tokens_per_expert"].shape == (2 + 2, mixtures[0].router.n_experts)
    assert row["tokens_per_expert"].sum(1).tolist() == [4 * LENGTH * mixtures[0].router.top_k] * 4
    for mixture in mixtures:
        assert mixture.router.expert_bias.abs().max().item() == pytest.approx(0.01)
        assert not mixture.tokens_E.any()


def test_flops_are_those_of_training():
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    model = built_model(tiny("fiddler:multi_token(2)"))
    tokens = torch.zeros(2, 64, dtype=torch.int64)
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        sum(logits.sum() for logits in model(tokens, ahead=True)).backward()
    assert counter.get_total_flops() == tokens.numel() * model.flops_per_token(64)
    assert model.n_parameters() == sum(p.numel() for p in model.parameters())


def test_its_blocks_are_compiled():
    model = built_model(tiny("fiddler:multi_token"))
    Compile(backend="eager").apply(model)
    assert len(model.blocks()) == 3
    assert all("compute" in vars(block) for block in model.blocks())


@pytest.mark.parametrize("recipe", ["llama3_8b", "qwen3_30b_a3b"])
def test_the_fiddler_copies_the_last_layer_but_for_what_layers_share(recipe):
    edits = ["set:model.layers[-1].attention.window=100", "set:model.norm.eps=1e-4"]
    cfg = compose([f"config:{recipe}", *edits, "fiddler:multi_token(2)"])
    assert problems(cfg) == []
    last, *blocks = [cfg.model.layers[-1], *(d.block for d in cfg.model.multi_token.depths)]
    assert all(block == last and block is not last for block in blocks)
    assert len({id(block.attention.wq) for block in (last, *blocks)}) == 3
    assert len({id(block.attention.rope) for block in (cfg.model.layers[0], last, *blocks)}) == 1
    first, second = cfg.model.multi_token.depths
    norms = [cfg.model.norm, first.embedding_norm, first.hidden_norm, first.norm, second.norm]
    assert all(norm == norms[0] for norm in norms) and len(set(map(id, norms))) == 5


def test_it_is_scaled_with_the_rest():
    cfg = compose(["config:qwen3_30b_a3b", "fiddler:multi_token", "fiddler:debug_scale"])
    model = build(cfg.model)
    assert [tuple(x.shape) for x in model.multi_token.depths[0].projection.parameters()] == [
        (model.embedding.dim, 2 * model.embedding.dim)
    ]


def test_the_rope_of_an_only_layer_is_shared_too():
    cfg = compose(["config:llama3_debug"])
    cfg.model.layers = cfg.model.layers[:1]
    multi_token(cfg)
    [layer], [depth] = cfg.model.layers, cfg.model.multi_token.depths
    assert depth.block.attention.rope is layer.attention.rope


@pytest.mark.parametrize(
    "edits, message",
    [
        (["fiddler:multi_token(0)"], "expected at least 1 further token"),
        (["fiddler:multi_token", "fiddler:multi_token"], "predicts further tokens already"),
        (["fiddler:multi_token", "set:model.multi_token.depths=[]"], "expected at least one"),
        (["fiddler:multi_token", "tag:MultiTokenLossWeight=-1"], "loss_weight=-1.0: expected 0"),
        (
            ["fiddler:multi_token", "set:model.multi_token.depths[0].projection.in_dim=128"],
            r"depths\[0\].projection.in_dim=128: expected 256 for norm.dim=128",
        ),
        (
            [
                "fiddler:multi_token",
                "set:model.multi_token.depths[0].block.attention.wo.out_dim=64",
            ],
            r"multi_token.depths\[0\].block.attention.wo.out_dim=64: expected 128",
        ),
    ],
)
def test_wrong_arguments_are_refused(edits, message):
    with pytest.raises(UsageError, match=message):
        build(tiny(*edits))


def test_a_block_of_another_kind_is_refused():
    cfg = tiny("fiddler:multi_token")
    depth = cfg.model.multi_token.depths[0]
    depth.block = depth.block.feed_forward
    assert fdl.get_callable(depth.block) is FeedForward
    with pytest.raises(
        UsageError, match=r"depths\[0\].block=FeedForward: expected a module that is called with"
    ):
        build(cfg)
