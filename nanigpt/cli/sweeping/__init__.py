"""What the command `sweep` is made of."""
