"""Configs on disk: the file format, its names, fingerprints, and the history of values."""
