"""Recipes: functions that return `fdl.Config[Trainer]`, with one file per model family."""
