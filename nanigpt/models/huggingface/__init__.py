"""Weights in and out, in the format that Hugging Face `transformers` reads and writes.

    mapping.py   what a family consists of: rules between their names and ours
    llama.py     a family
    families.py  all of them
    fields.py    what config.json says, beside what our modules say
    views.py     tensors of which only the needed part is read
    reader.py    their files to our parameters
    writer.py    our parameters to their files

A family is added by a file like llama.py and its name in families.py.
"""
