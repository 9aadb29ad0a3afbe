"""The parts of the command `launch`."""
