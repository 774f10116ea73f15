"""Says from a file's bytes alone whether it can hold a finding at all."""

from __future__ import annotations

import re

TRIGGERS = re.compile(
    rb"float16|\bhalf\b|\bfp16|\bbf16|autocast|GradScaler|MixedPrecision|16-(?:true|mixed)|float8|\bprecaudit\b"
)
"""Every finding needs a low-precision dtype, an autocast region, a loss scaler or an ignore comment in its file."""


def may_hold_a_finding(raw: bytes) -> bool:
    """Whether the file is worth parsing."""
    return TRIGGERS.search(raw) is not None
