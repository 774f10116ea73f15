"""Shows a Report: one module per format, all of them in one table."""
