"""Modules that decoders are assembled from. Constructing any of them allocates nothing."""
