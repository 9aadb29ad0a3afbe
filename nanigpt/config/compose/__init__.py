"""Command lines to configs: directives, overrides, and the axes of a sweep."""
