"""Says from a file's bytes alone whether it can hold a finding at all."""

from __future__ import annotations

import re

TRIGGERS = re.compile(
    rb"float16|\.half\(|torch\.half\b|[\"']half[\"']|float8_|autocast|GradScaler|MixedPrecision|16-true|(?:fp|bf)16_compress"
    rb"|load_in_[48]bit|fp32_precision|allow_fp16_"
    rb"|master_weights_and_grads|\b(?:fp|bf)16\s*=\s*True|[\"'](?:fp|bf)16[\"']\s*:|\bprecaudit\s*:|noqa: *PA"
)
"""Every finding needs a low-precision dtype, an autocast region, a loss scaler or an ignore comment in its file."""
LITERALS = (
    b"float16",
    b"half",
    b"float8_",
    b"autocast",
    b"GradScaler",
    b"MixedPrecision",
    b"16-true",
    b"16_compress",
    b"_and_grads",
    b"fp16",
    b"bf16",
    b"load_in_",
    b"fp32_precision",
    b"precaudit",
    b"noqa",
)
"""What every trigger contains one of: plain substrings, which are found much faster than patterns."""
PROSE = re.compile(
    rb"#(?![^\n]*(?:precaudit|noqa))[^\n]*|\"\"\".*?\"\"\"|\'\'\'.*?\'\'\'",
    re.DOTALL,
)
"""Comments and long strings, which hold no code; a sharp sign in a short string ends its line early."""


def may_hold_a_finding(raw: bytes) -> bool:
    """Whether the file is worth parsing."""
    if not any(literal in raw for literal in LITERALS) or TRIGGERS.search(raw) is None:
        return False
    return TRIGGERS.search(PROSE.sub(b"", raw)) is not None
