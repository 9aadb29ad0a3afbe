"""Configs for readers: text, Python, graphs, pages, differences, and notebooks."""
