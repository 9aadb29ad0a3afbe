"""Weights in and out, in the format that Hugging Face `transformers` reads and writes.

    mapping.py   what a family consists of: rules between their names and ours
    rules.py     rules that families have in common
    fields.py    what config.json says, beside what our modules say
    mixtures.py  the same of mixtures of experts
    llama.py     a family
    families.py  all of them
    quantized.py weights that files have in few bits
    views.py     tensors of which only the needed part is read
    reader.py    their files to our weights
    writer.py    our weights to their files

A family is added by a file like llama.py, its name in families.py, and shapes for the tests in
tests/models/huggingface.py.
"""
