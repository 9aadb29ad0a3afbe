"""Whoever has another way to bring tokens to experts than `AllToAll` plugs it in as a component."""

import fiddle as fdl
import pytest
import torch

from nanigpt.config.check.build import build
from nanigpt.experiments.pretraining import pretraining
from nanigpt.experiments.qwen3 import qwen3_model
from nanigpt.models.init import initialize, materialize
from nanigpt.models.moe.dispatch import (
    Dispatched,
    LocalDispatcher,
    count,
    sorted_rows,
    weighted_sum,
)
from nanigpt.models.moe.experts import Experts
from nanigpt.parallel.expert import AllToAllDispatcher, ExpertParallel
from nanigpt.parallel.mesh import Mesh
from nanigpt.parallel.simulate import fake_world

N_EXPERTS, LAYERS = 6, 2


class OwnExperts:
    """A dispatcher that sends nothing: a rank's experts see its own tokens, and what they make of
    them is a summand of what all make of them."""

    def __init__(self, mesh):
        self.mesh = mesh
        self.dispatched = self.combined = 0

    def dispatch(self, x_TD, experts_TN, n_experts):
        self.dispatched += 1
        each = n_experts // self.mesh.size()
        start = self.mesh.get_local_rank() * each
        order_R = experts_TN.flatten().argsort(stable=True)
        rows_E = count(experts_TN, n_experts)
        before, here = int(rows_E[:start].sum()), int(rows_E[start : start + each].sum())
        x_RD = sorted_rows(x_TD, order_R, experts_TN.shape[1])
        mine = slice(before, before + here)
        return Dispatched(x_RD[mine], rows_E[start : start + each], (order_R, mine))

    def combine(self, out_RD, weights_TN, way_back):
        self.combined += 1
        order_R, mine = way_back
        every_RD = out_RD.new_zeros(len(order_R), out_RD.shape[1])
        every_RD[mine] = out_RD
        return weighted_sum(every_RD, weights_TN, order_R)


class OwnTransport:
    def dispatcher(self, mesh):
        return OwnExperts(mesh)


class NoTransport:
    def dispatcher(self, mesh):
        raise AssertionError("nothing is to be sent")


def new_trainer(transport=None):
    model = qwen3_model(
        dim=16,
        n_layers=LAYERS,
        n_heads=2,
        n_kv_heads=1,
        head_dim=8,
        hidden_dim=8,
        n_experts=N_EXPERTS,
        top_k=3,
        vocab_size=64,
        sequence_length=32,
        compute_dtype=torch.float32,
    )
    cfg = pretraining(model, lr=1e-3, global_batch_size=2, sequence_length=16)
    if transport is not None:
        cfg.parallelizer.expert.transport = fdl.Config(transport)
        cfg.parallelizer.mesh.ep = 2
    return build(cfg)


def filled(model):
    materialize(model, "cpu")
    initialize(model, seed=0)
    return [block.feed_forward for block in model.layers]


@torch.no_grad()
def give_part(experts, *, of, rank):
    """A rank's half of all weights. torch remembers from one world to the next which rank it was
    of an equal mesh, so what the second one initialises is the first one's."""
    for name, weight in of.named_parameters():
        here = getattr(experts, name).to_local()
        assert here.shape[0] == N_EXPERTS // 2
        here.copy_(weight.chunk(2)[rank])


def inputs():
    return torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(0))


def test_a_transport_of_ones_own_brings_tokens_to_experts():
    """What two ranks find, one after the other, sums to what one process finds."""
    x = inputs()
    whole = filled(new_trainer().model)
    expected = [mixture(x)[0].detach() for mixture in whole]
    found = [torch.zeros_like(x) for _ in range(LAYERS)]
    for rank in range(2):
        trainer = new_trainer(OwnTransport)
        with fake_world(ranks=2, rank=rank) as world:
            layout = trainer.parallelizer.mesh.layout(world)
            trainer.parallelizer.expert.apply(trainer.model, layout)
            mixtures = filled(trainer.model)
            for i, mixture in enumerate(mixtures):
                give_part(mixture.experts, of=whole[i].experts, rank=rank)
                found[i] += mixture(x)[0].detach()
        own = [mixture.experts.dispatcher for mixture in mixtures]
        assert len(set(own)) == LAYERS
        for dispatcher in own:
            assert dispatcher.mesh.mesh_dim_names == ("ep",) and dispatcher.mesh.size() == 2
            assert (dispatcher.dispatched, dispatcher.combined) == (1, 1)
        if rank == 0:
            assert found[0].count_nonzero() and not torch.allclose(found[0], expected[0])
    torch.testing.assert_close(found, expected)


def test_a_transport_survives_everything_else_that_is_split():
    """The whole parallelizer keeps it, beside shards; without one it is `AllToAll`."""
    for transport, kind in ((OwnTransport, OwnExperts), (None, AllToAllDispatcher)):
        trainer = new_trainer(OwnTransport)
        if transport is None:
            trainer.parallelizer.expert = ExpertParallel()
        with fake_world(ranks=4, rank=3) as world:
            layout = trainer.parallelizer.mesh.layout(world)
            parallel = trainer.parallelizer.parallelize(trainer.model, layout, local_batch=1)
            experts = [m for m in parallel.model.modules() if isinstance(m, Experts)]
        assert len(experts) == LAYERS
        assert {type(each.dispatcher) for each in experts} == {kind}


@pytest.mark.parametrize("ranks", [1, 2])
def test_experts_that_nothing_divides_are_left_alone(ranks):
    """On one rank, and on two that only share the data."""
    model = new_trainer().model
    before = dict(model.named_parameters())
    with fake_world(ranks=ranks, rank=0) as world:
        ExpertParallel(transport=NoTransport()).apply(model, Mesh().layout(world))
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)
    for mixture in filled(model):
        experts = mixture.experts
        assert isinstance(experts.dispatcher, LocalDispatcher)
        assert experts.sharers == 1 and experts.local(experts.w1) is experts.w1
        assert mixture(inputs())[0].count_nonzero()
