"""Processes, device meshes, and how a model is spread over them."""
