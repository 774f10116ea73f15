"""One tap per place of torch that is patched or hooked: it tells what happens there, and judges nothing."""

from __future__ import annotations

from ..patching import Undo


class Tap:
    """One place. Its constructor names the parts it needs by their class, the bus among them.

    A file in this folder is all it takes: its taps are found, made and put in.
    """

    def install(self) -> list[Undo]:
        """Puts it in, and returns what takes it out again."""
        return []


__all__ = ["Tap"]
