"""What the subcommands share in talking to the user: one-line messages, and a report in the format asked for."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, TextIO

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
    """Prints the report in this format on `file`, in colour where that suits."""
    for finding in report.findings:
        print(f"{finding.path}:{finding.line}: {finding.severity.value} {finding.rule} {finding.message}", file=file)
    print(f"{report.status}: {len(report.findings)} findings", file=file, flush=True)


def listed(values: tuple[str, ...]) -> list[str]:
    """The words of a repeatable option: `--select PA1,PA3 --select PA5` is three."""
    return [word for value in values for word in value.replace(",", " ").split()]


def chosen_rules(book: Rulebook, select: tuple[str, ...], ignore: tuple[str, ...]) -> set[str]:
    """The rule ids that --select and --ignore leave. Raises RuleError for a word that chooses none."""
    chosen = book.select(listed(select)) if select else set(book.rules)
    return chosen - book.select(listed(ignore))
