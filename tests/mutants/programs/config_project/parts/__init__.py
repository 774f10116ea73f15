"""What the script is put together from."""
