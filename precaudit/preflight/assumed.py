"""Counts what a preflight made up, by what it was and the user's line that asked."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ..runtime.sites import user_frame

MOST = 200
"""Rows of a report; what is beyond them is counted in one."""


class Assumed:
    """Answers that no device was there to give."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str, int]] = Counter()

    def note(self, what: str) -> None:
        """Counts one more of these, at the user's line above the caller: `note("torch.cuda.memory_allocated: 0")`."""
        frame = user_frame(2)
        path = frame.f_code.co_filename if frame is not None else ""
        self._counts[what, path, frame.f_lineno if frame is not None else 0] += 1

    def rows(self) -> list[dict[str, Any]]:
        """What was assumed, most often first."""
        found = self._counts.most_common()
        rows = [{"what": w, "path": p, "line": n, "count": count} for (w, p, n), count in found[:MOST]]
        if found[MOST:]:
            left = sum(count for _, count in found[MOST:])
            rows.append({"what": f"answers at {len(found) - MOST} other lines", "path": "", "line": 0, "count": left})
        return rows


class Refused(RuntimeError):
    """What a preflight cannot run; the one line that it says is for the user."""


def refuse(what: str, way_out: str) -> Refused:
    """The error that ends a run which nobody could follow: what it was, why, and what to do."""
    return Refused(f"precaudit preflight: {what}; {way_out}")
