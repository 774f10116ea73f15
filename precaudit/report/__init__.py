"""Shows a Report: one module per format, all of them in one table."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from precaudit.errors import UsageError

if TYPE_CHECKING:
    from precaudit.model.wire import Report

__all__ = ["FORMATS", "View", "render"]


class View(NamedTuple):
    """How a report is to be shown; every format takes one and ignores what it has no use for."""

    root: Path
    """The folder that the report's paths are relative to; source excerpts are read from there."""
    color: bool = False
    verbosity: int = 0
    """Below 0 findings only; 0 errors and warnings in full; above 0 notes, consequences and coverage in full."""
    width: int = 80
    """Columns of the terminal."""
    show_again: str | None = None
    """The command that shows a trace's report again, as the next one to type; "" where the report was not kept."""


FORMATS: Mapping[str, str] = {
    "text": "precaudit.report.terminal:render",
    "concise": "precaudit.report.concise:render",
    "agent": "precaudit.report.agent:render",
    "json": "precaudit.report.jsonformats:render",
    "jsonl": "precaudit.report.jsonformats:render_lines",
    "sarif": "precaudit.report.sarif:render",
    "github": "precaudit.report.github:render",
    "gitlab": "precaudit.report.gitlab:render",
    "junit": "precaudit.report.junit:render",
    "md": "precaudit.report.markdown:render",
    "html": "precaudit.report.html:render",
    "flat": "precaudit.report.flat:render",
}
"""Name of a format -> the function that writes it, imported when it is asked for."""

DATA = frozenset({"json", "jsonl", "sarif", "gitlab"})
"""Formats that programs read: JSON says every string as it is."""


def render(
    report: Report,
    fmt: str,
    *,
    root: Path | None = None,
    color: bool = False,
    verbosity: int = 0,
    width: int | None = None,
    show_again: str | None = None,
) -> str:
    """The report in one of FORMATS, ending in a newline unless it is empty. Raises UsageError for another format.

    `root` is what the report's paths are relative to (default: the working directory); `color` and `width` matter
    to "text" only, where the width defaults to the terminal's. Nothing is printed.
    """
    if fmt not in FORMATS:
        near = difflib.get_close_matches(fmt, FORMATS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"allowed: {', '.join(FORMATS)}"
        raise UsageError(f"'{fmt}' is not an output format; {hint}")
    module, function = FORMATS[fmt].split(":")
    write: Callable[[Report, View], str] = getattr(import_module(module), function)
    if width is None:
        from shutil import get_terminal_size

        width = get_terminal_size().columns
    if fmt not in DATA:
        from precaudit.report.outside import harmless

        report = harmless(report)
    return write(report, View(root or Path.cwd(), color, verbosity, max(width, 40), show_again))
