"""Rewrites the golden texts, and the table in README.md."""

from tests.golden import rewrite

rewrite()
