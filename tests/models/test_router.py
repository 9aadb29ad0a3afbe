"""The router's choice and its weights; balancing, and what is told of a step's load."""

import math

import fiddle as fdl
import pytest
import torch
from torch.nn import functional as F

from nanigpt.cli.main import main
from nanigpt.config.check.build import build
from nanigpt.experiments import nodes
from nanigpt.experiments.qwen3 import qwen3_model
from nanigpt.models.activation import ClampedSwiGLU
from nanigpt.models.feed_forward import FeedForward
from nanigpt.models.init import Constant, FanInNormal, TruncatedNormal, initialize, materialize
from nanigpt.models.linear import Linear
from nanigpt.models.moe.experts import Experts
from nanigpt.models.moe.mixture import MixtureOfExperts
from nanigpt.models.moe.router import Router
from nanigpt.parallel.expert_load import most_experts, settle_load
from nanigpt.parallel.mesh import Mesh
from nanigpt.parallel.world import World, start_world
from nanigpt.training.checkpoint import list_checkpoints
from nanigpt.training.run_directory import RunDirectory
from nanigpt.training.setup import restore
from tests.support import flags, tiny, train
from tests.training.test_checkpoint import cut_back

NORMAL = FanInNormal(scale=1.0)
TOLD = ("load_imbalance", "router_entropy", "dropped_tokens", "expert_bias_range")


def filled(module, seed=0):
    """A module with initial weights."""
    materialize(module, "cpu")
    initialize(module, seed=seed)
    return module


def new_router(*, dim=16, n_experts=8, top_k=3, **arguments):
    """A router, whose `expert_bias`, if it has one, changes many choices."""
    router = filled(
        Router(dim=dim, n_experts=n_experts, top_k=top_k, initializer=NORMAL, **arguments)
    )
    if router.expert_bias is not None:
        generator = torch.Generator().manual_seed(3)
        router.expert_bias.copy_(0.3 * torch.randn(n_experts, generator=generator))
    return router


def expected_choice(scores, router):
    """Of one token: the numbers of its experts, from the list of its scores."""
    bias = [0.0] * len(scores) if router.expert_bias is None else router.expert_bias.tolist()
    biased = [score + b for score, b in zip(scores, bias, strict=True)]
    size = len(scores) // router.n_groups
    groups = [range(start, start + size) for start in range(0, len(scores), size)]
    if router.n_groups > 1:
        groups.sort(key=lambda group: sum(sorted(biased[e] for e in group)[-2:]), reverse=True)
    allowed = [e for group in groups[: router.top_groups] for e in group]
    return set(sorted(allowed, key=lambda e: biased[e], reverse=True)[: router.top_k])


@pytest.mark.parametrize(
    "arguments",
    [
        {"n_groups": 4, "top_groups": 2},
        {"n_groups": 2, "top_groups": 1, "scores": "sigmoid"},
        {"balance_rate": 0.1},
        {"n_groups": 4, "top_groups": 2, "balance_rate": 0.1, "scores": "sigmoid"},
    ],
)
def test_groups_and_bias_change_the_choice_and_not_the_weight(arguments):
    router = new_router(**arguments)
    x = torch.randn(2, 50, 16, generator=torch.Generator().manual_seed(1))
    weights, experts, scores = (each.flatten(0, 1) for each in router(x))
    changed = 0
    for chosen, of_token in zip(experts.tolist(), scores.tolist(), strict=True):
        assert set(chosen) == expected_choice(of_token, router)
        changed += set(chosen) != set(torch.tensor(of_token).topk(3).indices.tolist())
    assert changed > 10
    assert torch.equal(weights, scores.gather(-1, experts))


def test_logits_are_float32_whatever_the_input():
    router = new_router(bias=TruncatedNormal(std=0.5))
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    weights, _, scores = router(x)
    rounded = [p.detach().bfloat16().float() for p in (router.weight, router.bias)]
    assert scores.dtype == weights.dtype == torch.float32
    assert torch.equal(scores, F.linear(x.float(), *rounded).softmax(-1))


def decoder(*layers, **router):
    """A small decoder: of each layer the number of experts, 0 for none, and how many it takes."""
    cfg = qwen3_model(
        dim=32,
        n_layers=len(layers),
        n_heads=2,
        n_kv_heads=1,
        head_dim=16,
        hidden_dim=16,
        vocab_size=97,
        sequence_length=64,
        compute_dtype=torch.float32,
    )
    for block, (n_experts, top_k) in zip(cfg.layers, layers, strict=True):
        sizes = {"dim": 32, "hidden_dim": 16, "output_scale": 1.0}
        if n_experts:
            routed = {"n_experts": n_experts, "top_k": top_k, **router}
            block.feed_forward = nodes.mixture_of_experts(**sizes, **routed)
        else:
            block.feed_forward = nodes.feed_forward(**sizes)
    return filled(build(cfg))


def random_tokens(seed=0, shape=(4, 32)):
    return torch.randint(97, shape, generator=torch.Generator().manual_seed(seed))


def settled(model):
    layout = Mesh().layout(World(rank=0, size=1, device=torch.device("cpu")))
    return settle_load(model, layout, n_experts=most_experts(model), sequence_parts=1)


def record_routings(model):
    """What each router has returned, by layer, in the order of the passes."""
    routings = {}
    for i, block in enumerate(model.layers):
        if isinstance(block.feed_forward, MixtureOfExperts):
            of_layer = routings[i] = []
            block.feed_forward.router.register_forward_hook(
                lambda _m, _x, routing, to=of_layer: to.append(routing)
            )
    return routings


def chosen_counts(routings, n_experts):
    chosen = [e for routing in routings for e in routing.experts_BLN.flatten().tolist()]
    return [chosen.count(e) for e in range(n_experts)]


def test_imbalance_of_fewer_choices_than_experts():
    model = decoder((8, 2))
    model(random_tokens(shape=(1, 1)))
    assert settled(model)["load_imbalance"].item() == 4  # one, of a mean of a quarter


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_what_is_told_of_a_step(scores):
    model = decoder((6, 3), (0, 0), (4, 2), scores=scores, balance_rate=0.25)
    model.layers[2].feed_forward.router.expert_bias[0] = 2.0
    routings = record_routings(model)
    model(random_tokens(0))
    with torch.no_grad():
        model(random_tokens(1))  # an evaluation, which is not counted
    for of_layer in routings.values():
        of_layer.pop()
    model(random_tokens(2, shape=(1, 32)))
    told = settled(model)

    six, four = chosen_counts(routings[0], 6), chosen_counts(routings[2], 4)
    assert (sum(six), sum(four)) == (160 * 3, 160 * 2)
    assert told["tokens_per_expert"].tolist() == [six, [0] * 6, [*four, 0, 0]]
    imbalance = (max(six) / (160 * 3 / 6) + max(four) / (160 * 2 / 4)) / 2
    assert told["load_imbalance"].item() == pytest.approx(imbalance)
    entropies = []
    for routing in (r for of_layer in routings.values() for r in of_layer):
        for of_token in routing.scores_BLE.flatten(0, 1).tolist():
            shares = [score / sum(of_token) for score in of_token]
            entropies.append(-sum(share * math.log(share) for share in shares))
    assert len(entropies) == 320
    assert told["router_entropy"].item() == pytest.approx(sum(entropies) / 320, rel=1e-5)
    assert told["dropped_tokens"].item() == 0

    def step(counts):
        mean = sum(counts) / len(counts)
        return [0.25 * ((count < mean) - (count > mean)) for count in counts]

    biases = [step(six), [2.0 + step(four)[0], *step(four)[1:]]]
    found = [model.layers[i].feed_forward.router.expert_bias.tolist() for i in (0, 2)]
    assert found == biases
    ranges = [max(bias) - min(bias) for bias in biases]
    assert ranges[0] < ranges[1]
    assert told["expert_bias_range"].item() == ranges[1]

    again = settled(model)  # nothing was counted since
    assert again["tokens_per_expert"].count_nonzero() == 0
    assert [again[name].item() for name in TOLD[:3]] == [0, 0, 0]


def test_microbatches_are_balanced_as_one_batch():
    """One change of the bias, by what all of them asked."""
    whole, split = (decoder((8, 2), balance_rate=0.1) for _ in range(2))
    tokens = random_tokens(1)
    whole(tokens)
    routings = record_routings(split)[0]
    for part in tokens.chunk(2):
        split(part)
    biases = []
    for model in (whole, split):
        settled(model)
        biases.append(model.layers[0].feed_forward.router.expert_bias)
    assert torch.equal(*biases)
    assert set(biases[0].tolist()) <= {-torch.tensor(0.1).item(), 0.0, torch.tensor(0.1).item()}
    for one in routings:  # neither of them would have asked for the same
        alone = torch.tensor(chosen_counts([one], 8)).double()
        assert not torch.equal(biases[0].sign(), (alone.mean() - alone).sign().float())


def test_a_skewed_router_is_balanced_in_200_steps():
    def imbalances(**router):
        skewed = decoder((8, 2), scores="sigmoid", bias=fdl.Config(Constant, value=0.0), **router)
        with torch.no_grad():
            skewed.layers[0].feed_forward.router.bias[:2] = 3.0
        tokens, found = random_tokens(shape=(4, 64)), []
        for _ in range(200):
            skewed(tokens)
            found.append(settled(skewed)["load_imbalance"].item())
        return found

    left, evened = imbalances(), imbalances(balance_rate=0.005)
    assert evened[0] == min(left) == max(left) > 3.5
    assert max(evened[-20:]) < 1.15


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of 12 steps, each of them two microbatches, whose blocks are recomputed."""
    path = tmp_path_factory.mktemp("run")
    return path, train(balanced(), path)


def balanced(*edits):
    cfg = tiny(
        "tag:BalanceRate=0.05",
        "tag:SequenceLength=32",
        "tag:GlobalBatchSize=4",
        "tag:LocalBatchSize=2",
        "tag:ActivationCheckpointing=full",
        "set:metrics.tokens_per_expert=True",
        "fiddler:steps(12)",
        *edits,
        recipe="qwen3_moe_debug",
    )
    for block in cfg.model.layers:
        mixture = block.feed_forward
        mixture.router.n_experts = mixture.experts.n_experts = 6
        mixture.router.top_k = 2
    return cfg


def test_every_step_has_the_metrics_of_experts(run):
    _, rows = run
    assert all(set(TOLD) < row.keys() for row in rows)
    for row in rows:
        # Neither recomputation nor evaluation is counted: 4 sequences of 32 tokens, 2 experts each.
        assert [(len(layer), sum(layer)) for layer in row["tokens_per_expert"]] == [(6, 256)] * 2
        imbalance = sum(max(layer) / (256 / 6) for layer in row["tokens_per_expert"]) / 2
        assert row["load_imbalance"] == pytest.approx(imbalance)
        assert 0 < row["router_entropy"] <= math.log(6)
        assert row["dropped_tokens"] == 0
        assert 0 < row["expert_bias_range"] <= 0.1 * row["step"] + 1e-6


def test_a_run_counts_alike_without_microbatches_and_recomputation(run, tmp_path):
    edits = ("tag:LocalBatchSize=None", "tag:ActivationCheckpointing=none")
    rest = ("set:metrics.tokens_per_expert=False", "fiddler:steps(1)")
    cfg = balanced(*edits, *rest)
    [row] = train(cfg, tmp_path)
    assert "tokens_per_expert" not in row
    assert {name: row[name] for name in TOLD} == pytest.approx(
        {name: run[1][0][name] for name in TOLD}, rel=1e-6
    )


def test_a_resumed_run_has_the_bias_of_experts_bit_for_bit(run):
    path, rows = run

    def final():
        trainer = build(balanced())
        assert restore(trainer, RunDirectory(path), start_world("cpu"))[1].step == 12
        return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}

    before = final()
    biases = [before[f"layers.{i}.feed_forward.router.expert_bias"] for i in range(2)]
    assert all(bias.dtype == torch.float32 and bias.abs().max() > 0.05 for bias in biases)
    assert not any("tokens" in name or "entropy" in name for name in before)
    cut_back(path, 10)
    assert len(list_checkpoints(RunDirectory(path))) == 1
    resumed = train(balanced(), path)
    names = ("step", "loss", "grad_norm", "tokens_per_expert", "val_loss", *TOLD)
    assert [[row.get(n) for n in names] for row in resumed] == [
        [row.get(n) for n in names] for row in rows
    ]
    for name, tensor in final().items():
        assert torch.equal(tensor, before[name]), name


def test_a_sweep_may_look_for_balance(tmp_path):
    arguments = ("sweep", *flags("config:qwen3_moe_debug"), f"--dir={tmp_path}")
    rates = "--sweep=tag:BalanceRate=[1e-3,1e-2]"
    assert main([*arguments, rates, "--objective=load_imbalance", "--slurm"]) == 0


@pytest.mark.parametrize(
    "make, told",
    [
        (lambda: new_router(scores="relu"), "scores='relu': expected one of 'softmax', 'sigmoid'"),
        (lambda: new_router(top_k=0), "top_k=0: expected 1 to n_experts=8"),
        (lambda: new_router(top_k=9), "top_k=9: expected 1 to n_experts=8"),
        (lambda: new_router(n_groups=3), "n_groups=3: expected a divisor of"),
        (lambda: new_router(n_groups=0), "n_groups=0: expected a divisor of"),
        (lambda: new_router(n_groups=4, top_groups=5), "top_groups=5: expected 1 to n_groups=4"),
        (
            lambda: new_router(n_groups=8, top_groups=4),
            "n_groups=8: expected groups of at least two",
        ),
        (lambda: new_router(n_groups=4, top_groups=1), "expected groups that hold top_k=3 of"),
        (lambda: new_router(balance_rate=0.0), "balance_rate=0.0: expected a positive number, or"),
        (lambda: new_experts(n_experts=0), "n_experts=0: expected more than 0"),
        (lambda: new_experts(weighs="both"), "weighs='both': expected one of 'outputs', 'inputs'"),
        (
            lambda: new_experts(kernel="fast"),
            "kernel='fast': expected one of 'auto', 'grouped', 'loop'",
        ),
        (
            lambda: new_experts(kernel="grouped", hidden_dim=12),
            "kernel='grouped': expected another kernel with dim=16, hidden_dim=12",
        ),
        (lambda: ClampedSwiGLU(limit=0), "limit=0: expected more than 0"),
        (
            lambda: MixtureOfExperts(
                router=new_router(), experts=new_experts(n_experts=4), shared=new_shared(dim=6)
            ),
            "experts.n_experts=4: expected 8 for router.n_experts=8, router.dim=16; try "
            "experts.n_experts=8; shared.dim=6: expected 16",
        ),
    ],
)
def test_wrong_arguments(make, told):
    with pytest.raises(ValueError) as error:
        make()
    assert told in str(error.value)


def new_experts(*, n_experts=8, dim=16, hidden_dim=24, **arguments):
    return Experts(
        n_experts=n_experts,
        dim=dim,
        hidden_dim=hidden_dim,
        initializer=NORMAL,
        output_initializer=NORMAL,
        **arguments,
    )


def new_shared(*, dim=16, hidden_dim=10):
    into, out = (
        [Linear(in_dim=i, out_dim=o, initializer=NORMAL) for _ in range(n)]
        for n, i, o in ((2, dim, hidden_dim), (1, hidden_dim, dim))
    )
    return FeedForward(w1=into[0], w3=into[1], w2=out[0])
