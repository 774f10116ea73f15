"""What Python code does to abstract values."""
