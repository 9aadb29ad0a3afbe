"""Tasks that a model is trained to do."""
