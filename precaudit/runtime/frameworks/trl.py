"""TRL's trainers: Hugging Face Trainers with habits of their own, which fixes have to name."""

from __future__ import annotations

from . import Framework


class TRL(Framework):
    """Knows that TRL trains; what it declares is what its Trainer declares."""

    title = "TRL"
    order = 10
    classes = ("trl",)
