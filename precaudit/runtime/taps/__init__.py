"""One tap per place of torch that is patched or hooked: it tells what happens there, and judges nothing."""

from __future__ import annotations

from collections.abc import Iterable

from ..patching import Undo


class Tap:
    """One place. Its constructor names the parts it needs by their class, the bus among them.

    A file in this folder is all it takes: its taps are found, made and put in.
    """

    def install(self) -> Iterable[Undo]:
        """Puts it in, piece by piece; after each piece it yields what takes that one out again."""
        return ()


__all__ = ["Tap"]
