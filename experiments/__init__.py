"""Recipes: functions that return `fdl.Config[Trainer]`, one file per model family."""
