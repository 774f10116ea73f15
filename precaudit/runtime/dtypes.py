"""torch's dtypes by the names that Facts use, and which of them are low."""

from __future__ import annotations

import torch

from ..model.vocabulary import FLOATING

DTYPE_NAMES = {d: str(d).removeprefix("torch.") for d in vars(torch).values() if isinstance(d, torch.dtype)}
FLOATING_DTYPES = frozenset(dtype for dtype, name in DTYPE_NAMES.items() if name in FLOATING)
LOW = frozenset(dtype for dtype in FLOATING_DTYPES if FLOATING[DTYPE_NAMES[dtype]].bits < 32)
