"""Datasets, from text to batches of tokens."""
