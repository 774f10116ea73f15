"""Transformers models: their fixes are worded with `from_pretrained`."""

from __future__ import annotations

from . import Adapter


class Transformers(Adapter):
    """Knows that a model came from Transformers; its parameters are plain ones under the user's own names."""

    title = "Transformers"


ADAPTER = Transformers
