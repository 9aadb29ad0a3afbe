"""One number for a run: known values, what grows and what falls, and a run."""

import pytest

from nanigpt.config.check.build import build
from nanigpt.config.compose.flag import compose
from nanigpt.errors import UsageError
from nanigpt.experiments.dial import batch_tokens, dial, learning_rate
from tests.support import QUICK, train


def test_the_rules_give_the_published_run_of_deepseek_llm_7b():
    """7 B parameters, of which 6.5 B are no embedding, and 2 T tokens (Bi et al., 2024, table 2)."""
    flops = 6 * 6.5e9 * 2e12
    assert learning_rate(flops) == pytest.approx(4.2e-4, rel=0.05)
    assert batch_tokens(flops) == pytest.approx(2304 * 4096, rel=0.05)


def test_known_values():
    cfg = dial(depth=12)
    layer = cfg.model.layers[0]
    assert (cfg.model.embedding.dim, layer.attention.n_heads, layer.attention.head_dim) == (
        *(768, 12, 64),
    )
    assert layer.feed_forward.w1.out_dim == 2048
    # 12 layers of 4 768^2 + 3 768 2048 weights, and a head of 512 rows.
    n = 12 * (4 * 768**2 + 3 * 768 * 2048) + 768 * 512
    tokens = cfg.steps * cfg.global_batch_size * cfg.data.sequence_length
    assert 20 * n <= tokens < 20.01 * n
    assert cfg.schedule.warmup_steps == pytest.approx(cfg.steps / 20, abs=1)
    assert cfg.global_batch_size * 1024 == pytest.approx(batch_tokens(120 * n**2), rel=0.02)


def test_larger_models_have_larger_batches_more_tokens_and_lower_rates():
    runs = [dial(depth=n) for n in range(2, 33)]
    columns = {
        "width": [r.model.embedding.dim for r in runs],
        "batch": [r.global_batch_size for r in runs],
        "tokens": [r.steps * r.global_batch_size for r in runs],
        "rate": [-r.optimizer.lr for r in runs],
    }
    for name, column in columns.items():
        assert column == sorted(column), name
    assert len(set(columns["width"])) == len(set(columns["rate"])) == 31


@pytest.mark.parametrize("depth", [2, 3, 5, 8, 12, 20, 32])
def test_every_depth_is_clean(depth):
    trainer = build(compose([f"config:dial(depth={depth})"]))
    trainer.check(1, "cpu")
    assert len(trainer.model.layers) == depth


@pytest.mark.parametrize("size", ["depth=0", "sequence_length=0"])
def test_no_layer_and_no_token_are_refused(size):
    with pytest.raises(UsageError, match=f"{size}: expected at least 1"):
        compose([f"config:dial({size})"])


def test_a_small_one_learns(tmp_path):
    edits = ("tag:ComputeDType=float32", "fiddler:context(128)", "fiddler:steps(30)", *QUICK)
    rows = train(compose(["config:dial(depth=2)", *edits]), tmp_path)
    assert rows[-1]["loss"] < rows[0]["loss"] - 1
