"""Trackers: destinations for the rows of a run's metrics."""
