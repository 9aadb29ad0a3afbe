"""Selectors, parameter groups, and the learning rates that they have."""

import re
from collections import Counter

import pytest
import torch

from nanigpt.cli.main import main
from nanigpt.config.check.assembly import Assembly
from nanigpt.config.check.build import build
from nanigpt.config.compose.flag import compose
from nanigpt.errors import UsageError
from nanigpt.optim.adamw import adamw
from nanigpt.optim.groups import (
    KINDS,
    ParameterGroup,
    kind,
    learning_rates,
    parameter_groups,
    selects,
)
from tests.support import tiny, train


def parameters(recipe):
    return dict(build(compose([f"config:{recipe}"]).model).named_parameters())


def groups_of(named_parameters, *groups, weight_decay=0.1):
    """Weight decay and, where it has its own, learning rate by name."""
    made = parameter_groups(named_parameters.items(), weight_decay, groups)
    return {n: (g["weight_decay"], g.get("lr")) for g in made for n, _ in g["params"]}


def test_each_parameter_is_of_one_kind():
    of = {n: kind(n, p) for n, p in parameters("gpt_oss_debug").items()}
    assert {n for n, k in of.items() if k == "embedding"} == {"embedding.weight"}
    assert {n for n, k in of.items() if k == "head"} == {"head.weight"}
    matrices = {re.sub(r"layers\.\d+\.", "", n) for n, k in of.items() if k == "matrices"}
    assert matrices == {
        *(f"attention.w{x}.weight" for x in "qkvo"),
        "feed_forward.router.weight",
        *(f"feed_forward.experts.w{i}" for i in (1, 2, 3)),
    }
    assert of["layers.0.attention.sink.weight"] == of["norm.weight"] == "vectors"
    assert of["layers.0.feed_forward.experts.bias1"] == "vectors"  # stacked, of two dims
    assert set(of.values()) == set(KINDS)


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        ("layers[1]", 9),
        ("layers[*].attention", 6 * 4),
        ("layers[*].attention.w?", 6 * 4),
        ("layers.2.attention.wq.weight", 1),
        ("model.layers[0].attention.wq", 1),
        ("*norm*", 13),
        ("norm", 1),
        ("layers[1].attention.w", 0),
        ("head", 1),
        ("vectors", 13),
        (("embedding", "layers[0]"), 10),
    ],
)
def test_selectors(select, expected):
    """Of 6 layers with 7 matrices and 2 gains each; of ten or more layers 1 is not 10."""
    found = [n for n, p in parameters("llama3_debug").items() if selects(select, n, p)]
    assert len(found) == expected
    assert not selects("layers[1]", "layers.10.attention_norm.weight", torch.ones(2))


def test_the_first_group_that_selects_a_parameter_has_it():
    own = (
        ParameterGroup(select="layers[0].attention", lr=0.5),
        ParameterGroup(select=("layers[0]", "norm"), weight_decay=0.3),
    )
    of = groups_of(parameters("llama3_debug"), *own)
    assert of["layers.0.attention.wq.weight"] == (0.1, 0.5)
    assert of["layers.0.feed_forward.w1.weight"] == (0.3, None)
    assert of["norm.weight"] == (0.3, None)  # a group that says so decays gains
    assert of["layers.1.feed_forward.w1.weight"] == (0.1, None)
    assert of["layers.1.attention_norm.weight"] == (0.0, None)


def test_gains_in_a_group_with_its_own_rate_do_not_decay():
    of = groups_of(parameters("llama3_debug"), ParameterGroup(select="layers[0]", lr=0.5))
    assert of["layers.0.attention_norm.weight"] == (0.0, 0.5)
    assert of["layers.0.attention.wq.weight"] == (0.1, 0.5)


def test_a_rank_without_a_groups_parameters_can_step_and_tells_its_rate():
    """As a pipeline's first stage, of a group of the head."""
    weight = torch.nn.Parameter(torch.ones(2, 2))
    group = ParameterGroup(select="head", lr=0.25)
    optimizer = adamw([("layers.0.w.weight", weight)], lr=0.5, groups=(group,))
    weight.grad = torch.ones(2, 2)
    optimizer.step()
    assert weight[0, 0].item() == pytest.approx(1 * (1 - 0.5 * 0.1) - 0.5)
    assert learning_rates(optimizer) == {"lr": 0.5, "lr_head": 0.25}


def test_every_group_follows_the_schedule(tmp_path):
    cfg = tiny(
        "fiddler:steps(4)",
        "fiddler:parameter_group(embedding, lr=0.002)",
        "fiddler:parameter_group('layers[*].attention.*', lr=0.0, weight_decay=0)",
        "fiddler:muon(lr=0.01)",
        "set:optimizer.select=layers[*].feed_forward",
    )
    rows = train(cfg, tmp_path)
    schedule = build(cfg.schedule)
    for row in rows:
        factor = schedule(row["step"] - 1, 4)
        assert row["lr"] == pytest.approx(0.001 * factor)
        assert row["lr_muon"] == pytest.approx(0.01 * factor)
        assert row["lr_embedding"] == pytest.approx(0.002 * factor)
        assert row["lr_layers_attention"] == 0


@pytest.mark.parametrize("muon_first", [True, False])
def test_a_group_is_of_muons_and_of_the_other_parameters(muon_first):
    """`layers[0]` has both, the embedding is no matrix of Muon's, and `wq` nothing else."""
    edits = [
        "fiddler:muon(lr=0.01)",
        "fiddler:parameter_group('layers[0]', lr=0.5)",
        "fiddler:parameter_group(embedding, lr=0.25)",
        "fiddler:parameter_group('*.wq', weight_decay=0.75)",
    ]
    trainer = build(tiny(*(edits if muon_first else edits[1:] + edits[:1])))
    trainer.check(1)
    optimizer = trainer.optimizer(trainer.model.named_parameters())
    rates = {n: g["lr"] for g in optimizer.param_groups for n in g["param_names"]}
    decays = {n: g["weight_decay"] for g in optimizer.param_groups for n in g["param_names"]}
    assert {rates[n] for n in rates if n.startswith("layers.0.")} == {0.5}
    assert rates["layers.1.attention.wq.weight"] == 0.01
    assert rates["layers.1.attention_norm.weight"] == rates["head.weight"] == 0.001
    assert rates["embedding.weight"] == 0.25
    assert decays["layers.1.attention.wq.weight"] == 0.75
    assert decays["layers.0.attention.wq.weight"] == 0.1  # of the first group
    assert learning_rates(optimizer) == {
        "lr": 0.001,
        "lr_muon": 0.01,
        "lr_layers_0": 0.5,
        "lr_embedding": 0.25,
    }


def test_learning_rates_by_tag():
    """A tag sets what is tagged with it, or with a tag derived from it."""
    run = ("config:llama3_debug", "fiddler:muon(lr=0.02)")
    own = compose([*run, "tag:MuonLearningRate=0.03"]).optimizer
    assert (own.lr, own.others.lr) == (0.03, 0.001)
    both = compose([*run, "tag:LearningRate=0.004"]).optimizer
    assert (both.lr, both.others.lr) == (0.004, 0.004)
    apart = compose([*run, "tag:LearningRate=0.004", "tag:MuonLearningRate=0.03"]).optimizer
    assert (apart.lr, apart.others.lr) == (0.03, 0.004)


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        (
            ["fiddler:parameter_group('layrs[0]')"],
            r"groups[0].select='layrs[0]': expected one of matrices",
        ),
        (
            ["fiddler:parameter_group(head)", "fiddler:parameter_group('head.weight', lr=1)"],
            "groups[1].select='head.weight': expected one of matrices",
        ),
        (
            ["fiddler:muon", "set:optimizer.select=w9"],
            "optimizer.select='w9': expected one of matrices",
        ),
        (
            ["fiddler:parameter_group(w9)", "fiddler:muon"],
            "optimizer.groups[0].select, optimizer.others.groups[0].select='w9': expected one of",
        ),
        (
            ["fiddler:muon", "set:optimizer.select=layers[0]"],
            "optimizer.select='layers[0]': expected selectors of matrices and stacks",
        ),
        (["fiddler:parameter_group('layers[0]', lr=-1)"], "lr=-1.0: expected 0 or more"),
        (["fiddler:parameter_group('')"], "select='': expected a selector"),
        (["fiddler:muon", "fiddler:muon"], "the run has Muon already"),
        (["fiddler:muon", "set:optimizer.momentum=1"], "optimizer.momentum=1.0: expected"),
        (["set:optimizer.eps=-1"], "optimizer.eps=-1.0: expected more than 0"),
        (
            ["set:optimizer.state=bfloat16", "set:optimizer.betas=(0.9, 0.999)"],
            "expected at most 0.99 with state='bfloat16'",
        ),
    ],
)
def test_mistakes_are_told_before_training(edits, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        Assembly(tiny(*edits)).check(lambda trainer: trainer.problems(1))


def test_check_tells_a_selector_that_matches_nothing(capsys):
    """By the command alone, and which flag it is of."""
    assert main(["check", "--config=fiddler:parameter_group('layrs[0]')"]) == 2
    told = capsys.readouterr().err
    assert "groups[0].select='layrs[0]'" in told
    assert "<- --config=fiddler:parameter_group('layrs[0]')" in told


def test_groups_are_counted_once():
    """No parameter is lost, and none is in two groups, as torch would refuse."""
    named = parameters("qwen3_moe_debug")
    own = [ParameterGroup(select=s) for s in ("vectors", "layers[0]", "*")]
    made = parameter_groups(named.items(), 0.1, own)
    names = Counter(n for group in made for n, _ in group["params"])
    assert names == Counter(named.keys())
