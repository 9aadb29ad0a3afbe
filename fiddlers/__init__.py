"""Fiddlers: functions that edit a run's config in place, with one file per concern."""
