"""Audits the numeric precision of PyTorch training: a static pass, a runtime trace, one rule table."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from precaudit.api.audit import Audit, audit, audited
    from precaudit.api.reports import Audited, check, load
    from precaudit.api.snapshot import Snapshot, snapshot
    from precaudit.errors import FindingsError, PrecauditError

__version__ = "0.1.0"
__all__ = [
    "Audit",
    "Audited",
    "FindingsError",
    "PrecauditError",
    "Snapshot",
    "__version__",
    "audit",
    "audited",
    "check",
    "load",
    "snapshot",
]

_HOMES = {
    "Audit": "precaudit.api.audit",
    "Audited": "precaudit.api.reports",
    "FindingsError": "precaudit.errors",
    "PrecauditError": "precaudit.errors",
    "Snapshot": "precaudit.api.snapshot",
    "audit": "precaudit.api.audit",
    "audited": "precaudit.api.audit",
    "check": "precaudit.api.reports",
    "load": "precaudit.api.reports",
    "snapshot": "precaudit.api.snapshot",
}
"""Name -> where it lives: imported at its first use, so that `import precaudit` costs nothing."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'precaudit' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
