"""The first steps of all recipes have the losses that they had when they were recorded."""

from pathlib import Path

import pytest

from tests.support import finish, start

ROOT = Path(__file__).parents[2]
COMPARE = ("tools/bit_equal.py", "--compare")
RECORDED = "tests/fixtures/bit_equal.json"


@pytest.mark.slow
def test_recipes_train_as_they_did():
    done = finish(start(*COMPARE, RECORDED, cwd=ROOT), 280)
    if done.returncode == 2:
        pytest.skip(done.stdout.splitlines()[-1])
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_changed_number_is_named(tmp_path):
    changed = tmp_path / "changed.json"
    text = (ROOT / RECORDED).read_text()
    head, rows = text.split('"qwen3_0_6b"')
    changed.write_text(f'{head}"qwen3_0_6b"{rows.replace("0x1.", "0x1.0", 1)}')
    done = finish(start(*COMPARE, str(changed), "--only", "qwen3_0_6b", cwd=ROOT), 120)
    if done.returncode == 2:
        assert "other arithmetic" in done.stdout
    else:
        assert done.returncode == 1
        assert "qwen3_0_6b: step 1: loss" in done.stdout
