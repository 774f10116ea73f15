"""Audits the numeric precision of PyTorch training: a static pass, a runtime trace, one rule table."""

__version__ = "0.1.0"
__all__ = ["__version__"]
