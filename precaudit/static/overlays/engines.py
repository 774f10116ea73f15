"""Engines that keep float32 masters themselves, and are chosen outside the file that they train."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from precaudit.static.prefilter import code_of

if TYPE_CHECKING:
    from precaudit.static.overlays.torch_model import Torch

ENGINES = re.compile(r"deepspeed|fsdp|fully_?shard|megatron", re.IGNORECASE)
"""Engines that keep float32 masters themselves; which one runs is decided outside the file that mentions it."""


def masters_elsewhere(torch: Torch, node: Any) -> bool:
    """Whether an engine that keeps float32 masters may train what stands in this file."""
    return bool(ENGINES.search(code_of(torch.spot(node).source.text)))
