"""What the subcommands share in talking to the user: one-line messages, and a report in the format asked for."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, TextIO

from precaudit.errors import UsageError

if TYPE_CHECKING:
    from precaudit.model.wire import Report
    from precaudit.rulebook import Rulebook


def say(line: str) -> None:
    """Prints one line of ours on stderr."""
    print(f"precaudit: {line}", file=sys.stderr, flush=True)


def wants_color(file: TextIO) -> bool:
    """Whether to colour what goes to `file`: only on a terminal, and never where NO_COLOR is set (no-color.org)."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and file.isatty()


def print_report(report: Report, output_format: str, file: TextIO, verbosity: int = 0) -> None:
    """Prints the report in this format on `file`, in colour where that suits. Raises UsageError for no such format."""
    from precaudit.report import render

    text = render(report, output_format, color=wants_color(file), verbosity=verbosity, width=width_of(file))
    encoding = getattr(file, "encoding", None) or "utf-8"  # a StringIO has none
    file.write(text.encode(encoding, "replace").decode(encoding))
    file.flush()


def check_format(output_format: str) -> None:
    """Raises UsageError now, before hours of training, for a format that does not exist."""
    from precaudit.report import FORMATS

    if output_format not in FORMATS:
        near = difflib.get_close_matches(output_format, FORMATS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"allowed: {', '.join(FORMATS)}"
        raise UsageError(f"--output-format: '{output_format}' is not an output format; {hint}")


def width_of(file: TextIO) -> int:
    """The columns of the terminal that `file` is; else COLUMNS, or 100 where lines are wrapped for a log."""
    try:
        return os.get_terminal_size(file.fileno()).columns
    except (OSError, ValueError):
        columns = os.environ.get("COLUMNS", "")
        return int(columns) if columns.isdigit() else 100


def listed(values: Iterable[str]) -> list[str]:
    """The words of a repeatable option: `--select PA1,PA3 --select PA5` is three."""
    return [word for value in values for word in value.replace(",", " ").split()]


def chosen_rules(
    book: Rulebook, select: Iterable[str], ignore: Iterable[str], also: Iterable[str] = ()
) -> frozenset[str]:
    """The rule ids that select (all, where it names none) and ignore leave. Raises RuleError for an unknown word."""
    words = listed(select)
    chosen = book.select(words) if words else set(book.rules)
    return frozenset((chosen | book.select(listed(also))) - book.select(listed(ignore)))
