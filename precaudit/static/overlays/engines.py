"""Engines that keep float32 masters themselves, and are chosen outside the file that they train."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from precaudit.static.reach.words import code_of

if TYPE_CHECKING:
    from precaudit.static.overlays.run import Run

ENGINES = re.compile(r"deepspeed|fsdp|fully_?shard|megatron", re.IGNORECASE)
"""Engines that keep float32 masters themselves; which one runs is decided outside the file that mentions it."""
WORD = re.compile(r"\w+")
GIVEN = re.compile(r"[ \t]{0,9}(?::[\w.\[\] |]{0,80})?=(?!=)[ \t]{0,9}(None\b|False\b|\"\"|'')?")
"""What stands after `deepspeed` in `deepspeed=None` and after `use_fsdp` in `use_fsdp: bool = False`."""


def masters_elsewhere(run: Run, node: Any) -> bool:
    """Whether an engine that keeps float32 masters may train what stands in this file; one switched off does not."""
    code = code_of(run.spot(node).source.text)
    if not ENGINES.search(code):
        return False
    on: dict[str, bool] = {}
    mentioned = set()
    for word in WORD.finditer(code):
        if ENGINES.search(word[0]):
            mentioned.add(word[0])
            given = GIVEN.match(code, word.end())
            if given is not None:
                on[word[0]] = on.get(word[0], False) or given[1] is None
    return any(on.get(word, True) for word in mentioned)
