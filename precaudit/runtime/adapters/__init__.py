"""One adapter per framework: where it keeps its tensors, and which dtypes it declared."""
