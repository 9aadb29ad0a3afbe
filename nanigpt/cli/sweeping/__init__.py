"""The parts of the command `sweep`."""
