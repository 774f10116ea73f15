"""The runtime witness: runs inside the traced command. Standard library, torch and `model.vocabulary` only."""
