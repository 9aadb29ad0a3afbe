"""AdamW against its equations, and the decay of matrices only."""

import re

import torch

from nanigpt.config.check.build import build
from nanigpt.config.compose.flag import compose
from nanigpt.optim.adamw import adamw, parameter_groups


def test_two_steps_by_hand():
    matrix = torch.nn.Parameter(torch.tensor([[1.0, -2.0]]))
    gain = torch.nn.Parameter(torch.tensor([3.0]))
    lr, decay, (b1, b2), eps = 0.1, 0.5, (0.9, 0.95), 1e-8
    optimizer = adamw(
        [("w", matrix), ("g", gain)], lr=lr, weight_decay=decay, betas=(b1, b2), eps=eps
    )
    expected = {"w": matrix.detach().clone(), "g": gain.detach().clone()}
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in expected.items()}
    for step in (1, 2):
        gradients = {"w": torch.tensor([[0.5, 4.0]]) * step, "g": torch.tensor([-1.0])}
        matrix.grad, gain.grad = gradients["w"], gradients["g"]
        optimizer.step()
        for name, p in expected.items():
            m, v = moments[name]
            m = b1 * m + (1 - b1) * gradients[name]
            v = b2 * v + (1 - b2) * gradients[name] ** 2
            moments[name] = (m, v)
            p = p * (1 - lr * (decay if name == "w" else 0.0))
            update = (m / (1 - b1**step)) / ((v / (1 - b2**step)).sqrt() + eps)
            expected[name] = p - lr * update
    torch.testing.assert_close(matrix.detach(), expected["w"])
    torch.testing.assert_close(gain.detach(), expected["g"])


def test_frozen_parameters_are_left_out():
    frozen = torch.nn.Parameter(torch.ones(2, 2), requires_grad=False)
    trained = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = adamw([("a", frozen), ("b", trained)])
    assert [p for group in optimizer.param_groups for p in group["params"]] == [trained]


def test_biases_of_experts_are_no_matrices():
    """They are stacked, and so have two dims."""
    model = build(compose(["config:gpt_oss_debug"]).model)
    decays = {
        re.sub(r"^layers\.\d+\.", "", name): group["weight_decay"]
        for group in parameter_groups(model.named_parameters(), 0.1)
        for name, _ in group["params"]
    }
    decayed = {name for name, decay in decays.items() if decay}
    assert decayed == {
        "embedding.weight",
        "head.weight",
        *(f"attention.w{x}.weight" for x in "qkvo"),
        "feed_forward.router.weight",
        *(f"feed_forward.experts.w{i}" for i in (1, 2, 3)),
    }
    assert decays["feed_forward.experts.bias1"] == decays["feed_forward.router.bias"] == 0
