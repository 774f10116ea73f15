"""Starts the user's command with the bootstrap beside it, and collects what its processes wrote."""
