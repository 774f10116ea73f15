"""TRL's trainers: Hugging Face Trainers with habits of their own, which fixes have to name."""

from __future__ import annotations

from . import Adapter


class TRL(Adapter):
    """Knows that TRL trains; what it declares is what its Trainer declares."""

    title = "TRL"


ADAPTER = TRL
