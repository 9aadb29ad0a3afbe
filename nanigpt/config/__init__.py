"""The Fiddle layer: names, flags, overrides, records. Knows nothing of training."""
