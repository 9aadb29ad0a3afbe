"""Whether a config can be built: types, missing arguments, and what components refuse."""
