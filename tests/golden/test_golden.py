"""Recipes are what they were when last reviewed."""

import pytest

from nanigpt.config.registry import recipes
from tests.golden import FOLDER, README, golden_text, readme


@pytest.mark.parametrize("recipe", recipes())
def test_recipe_is_as_reviewed(recipe):
    expected = (FOLDER / f"{recipe}.txt").read_text()
    assert golden_text(recipe) == expected, "if this is meant: ./tools/run python -m tests.golden"


def test_no_golden_text_without_its_recipe():
    assert {path.stem for path in FOLDER.glob("*.txt")} == set(recipes())


def test_the_table_in_readme_is_what_count_prints():
    assert README.read_text() == readme(), "if this is meant: ./tools/run python -m tests.golden"
