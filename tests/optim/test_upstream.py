"""Upstream's optimizers without torch.compile's hooks are the same optimizers."""

import pytest
import torch

from nanigpt.optim.upstream import without_dynamo


@pytest.mark.parametrize(
    "kind, options",
    [(torch.optim.AdamW, {"fused": True}), (torch.optim.SGD, {"momentum": 0.9})],
)
def test_updates_and_state_are_upstreams(kind, options):
    results = []
    for made in (kind, without_dynamo(kind)):
        generator = torch.Generator().manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(4, 4, generator=generator))
        optimizer = made([weight], lr=0.1, **options)
        for _ in range(3):
            optimizer.zero_grad()
            (weight * torch.randn(4, 4, generator=generator)).sum().backward()
            optimizer.step()
        resumed = made([weight], lr=0.1, **options)
        resumed.load_state_dict(optimizer.state_dict())
        results.append((weight.detach(), optimizer.state_dict(), resumed.state_dict()))
    upstream, ours = results
    assert torch.equal(upstream[0], ours[0])
    for theirs, mine in zip(upstream[1:], ours[1:], strict=True):
        assert theirs["param_groups"] == mine["param_groups"]
        assert theirs["state"].keys() == mine["state"].keys() == {0}
        for name, value in theirs["state"][0].items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(mine["state"][0][name]))


def test_they_are_told_apart_by_nothing_but_that():
    kind = without_dynamo(torch.optim.AdamW)
    assert issubclass(kind, torch.optim.AdamW) and kind.__name__ == "AdamW"
    assert without_dynamo(torch.optim.AdamW) is kind
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = kind([weight], lr=0.1)
    weight.grad = torch.ones(1)
    optimizer.step()  # in place, of a leaf that requires a gradient
    assert weight.requires_grad and weight.item() < 1
