"""Training configs."""

from __future__ import annotations

from typing import Any

from precaudit.static.files import Found


def examine_config(item: Found, raw: bytes) -> dict[str, Any]:
    return {}
