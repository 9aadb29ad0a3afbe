"""Weights in and out, in the format that Hugging Face `transformers` reads and writes.

    mapping.py   the parts of a family: rules that map their names to ours
    rules.py     rules that several families share
    fields.py    conversion between config.json and our modules
    mixtures.py  the same conversion for mixtures of experts
    llama.py     one family; qwen3.py, gpt_oss.py, ... are others
    families.py  the list of all families
    quantized.py weights that files store in a few bits
    views.py     tensors that are read from a file part by part
    reader.py    reads their files into our weights
    writer.py    writes our weights into their files

To add a family, write a file like llama.py, add its name to families.py, and add its shapes to
tests/models/huggingface.py.
"""
