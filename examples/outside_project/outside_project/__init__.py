"""A project outside nanigpt: modules, a tokenizer, a tracker, a task, and recipes of them."""
