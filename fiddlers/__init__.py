"""Fiddlers: functions that edit a run's config in place, one file per concern."""
