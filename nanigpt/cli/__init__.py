"""The commands of `python -m nanigpt`, each in one file."""
