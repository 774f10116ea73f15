"""Keeps of a file what leads to a trigger: a word from which a finding can start."""
