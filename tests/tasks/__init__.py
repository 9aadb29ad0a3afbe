"""Tests of nanigpt.tasks."""
