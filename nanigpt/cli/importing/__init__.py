"""Translate configs of other programs into recipes: see `nanigpt.cli.import_config`.

keys.py        the values of a file, and those that nobody took
draft.py       a recipe in the making, and its source
llama_sizes.py published sizes of Llama models
torchtitan.py  a TOML of torchtitan; torchtitan_parallel.py has its parallelism
torchtune.py   a YAML of torchtune
"""
