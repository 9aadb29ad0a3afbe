"""What the command `launch` is made of."""
