"""Runs a CUDA training where there is no GPU: a layer below the trace, in the user's process, that can be taken out."""
