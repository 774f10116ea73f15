"""What torch, the frameworks and the standard library do to abstract values."""
