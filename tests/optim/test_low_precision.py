"""AdamW with state of fewer bits, beside that with state of float32."""

import sys

import pytest
import torch

from nanigpt.optim import bfloat16
from nanigpt.optim.adamw import adamw
from nanigpt.optim.groups import ParameterGroup
from nanigpt.problems import ComponentError


def trained(state, *, steps=60, **arguments):
    """Weights and state after regression on fixed data; gradients differ from step to step."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(64, 64))
    gain = torch.nn.Parameter(torch.ones(64))
    target = torch.randn(64, 64, generator=generator)
    optimizer = adamw(
        [("layers.0.w.weight", weight), ("norm.weight", gain)], lr=0.02, state=state, **arguments
    )
    losses = []
    for _ in range(steps):
        x = torch.randn(32, 64, generator=generator)
        loss = ((x * gain) @ weight.T - x @ target.T).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return weight.detach(), optimizer.state[weight], losses


@pytest.mark.parametrize(("state", "tolerance"), [("bfloat16", 0.01), ("8bit", 0.05)])
def test_tracks_state_of_float32(state, tolerance):
    exact, moments, losses = trained("float32")
    near, kept, near_losses = trained(state)
    assert losses[-1] < 0.3 * losses[0]
    assert near_losses[-1] == pytest.approx(losses[-1], rel=tolerance)
    difference = (near - exact).norm() / exact.norm()
    assert 0 < difference < tolerance, difference
    for name in ("exp_avg", "exp_avg_sq"):
        if state == "bfloat16":
            assert kept[name].dtype == torch.bfloat16
        else:
            assert kept[name].codes.dtype == torch.uint8 and kept[name].scale.numel() == 16
        assert moments[name].dtype == torch.float32
    assert int(kept["step"]) == 60


def test_batches_change_nothing(monkeypatch):
    whole, _, _ = trained("bfloat16", steps=3)
    monkeypatch.setattr(bfloat16, "_BATCH", 1)
    apart, _, _ = trained("bfloat16", steps=3)
    assert torch.equal(whole, apart)


def test_the_first_step_is_the_fused_kernels():
    """Moments begin at zero, which every dtype has."""
    exact, _, _ = trained("float32", steps=1)
    near, _, _ = trained("bfloat16", steps=1)
    torch.testing.assert_close(near, exact, rtol=1e-6, atol=1e-8)


def test_an_unknown_state_is_refused():
    with pytest.raises(
        ComponentError, match="state='fp4': expected one of 'float32', 'bfloat16', '8bit'"
    ):
        trained("fp4")


def test_a_kernel_of_another_state_is_refused():
    with pytest.raises(
        ComponentError, match="kernel='foreach': expected 'fused' with state='bfloat16'"
    ):
        trained("bfloat16", kernel="foreach")


def test_kernels_agree():
    fused, _, _ = trained("float32")
    each, _, _ = trained("float32", kernel="foreach")
    torch.testing.assert_close(each, fused, rtol=1e-5, atol=1e-7)


def test_without_torchao_it_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    monkeypatch.delitem(sys.modules, "nanigpt.optim.eight_bit", raising=False)
    with pytest.raises(
        ComponentError, match=r"torchao cannot be imported .*pip install 'nanigpt\[float8\]'"
    ):
        trained("8bit", steps=1)


def test_eight_bits_are_made_on_meta_as_check_does():
    pytest.importorskip("torchao")
    groups = (ParameterGroup(select="b", lr=1e-2),)
    with torch.device("meta"):
        named = [(name, torch.nn.Parameter(torch.empty(64, 64))) for name in "ab"]
        optimizer = adamw(named, lr=1e-3, state="8bit", groups=groups)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 1e-2]
