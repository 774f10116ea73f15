"""What a team allows its runs on purpose: read from pyproject.toml, and asked of each finding."""
