"""Trackers: where the rows of a run's metrics go."""
