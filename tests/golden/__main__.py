"""Rewrites the golden texts."""

from tests.golden import rewrite

rewrite()
