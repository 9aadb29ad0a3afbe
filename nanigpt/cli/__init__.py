"""Commands of `python -m nanigpt`, one file each."""
