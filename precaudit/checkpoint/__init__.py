"""Reads checkpoint files, never their code: dtypes, roles by name, and hollow float32 tensors."""
