"""Says from a file's bytes alone whether it can hold a finding at all."""

from __future__ import annotations

import re

TRIGGERS = re.compile(
    rb"float16|\.half\(|torch\.half\b|[\"']half[\"']|float8_|autocast|GradScaler|MixedPrecision|16-true|(?:fp|bf)16_compress"
    rb"|master_weights_and_grads|\b(?:fp|bf)16\s*=\s*True|[\"'](?:fp|bf)16[\"']\s*:|\bprecaudit\s*:|noqa: *PA"
)
"""Every finding needs a low-precision dtype, an autocast region, a loss scaler or an ignore comment in its file."""
PROSE = re.compile(
    rb"#(?![^\n]*(?:precaudit|noqa))[^\n]*|(?:^|(?<=:))\s*[rRbBuU]?(?:\"\"\".*?\"\"\"|\'\'\'.*?\'\'\')",
    re.DOTALL | re.MULTILINE,
)
"""Comments and strings that stand as statements; a sharp sign in a string ends its line early."""


def may_hold_a_finding(raw: bytes) -> bool:
    """Whether the file is worth parsing."""
    return TRIGGERS.search(raw) is not None and TRIGGERS.search(PROSE.sub(b"", raw)) is not None
