"""What the subcommands share in talking to the user: one-line messages, and a report in the format asked for."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from precaudit import disk
from precaudit.errors import PrecauditError, UsageError

if TYPE_CHECKING:
    from precaudit.model.wire import Report
    from precaudit.rulebook import Rulebook


def say(line: str) -> None:
    """Prints one line of ours on stderr."""
    print(f"precaudit: {line}", file=sys.stderr, flush=True)


def wants_color(file: TextIO) -> bool:
    """Whether to colour what goes to `file`: only on a terminal, and never where NO_COLOR is set (no-color.org)."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and file.isatty()


def print_report(
    report: Report, output_format: str, file: TextIO, verbosity: int = 0, show_again: str | None = None
) -> None:
    """Prints the report in this format on `file`, in colour where that suits. Raises UsageError for no such format.

    `show_again` is the command that would show it again, "" where the report was not kept.
    """
    from precaudit.report import render

    color, width = wants_color(file), width_of(file)
    # Shown from another folder, the lines are still read where the run was.
    root = Path(report.run.cwd) if report.run is not None and os.path.isdir(report.run.cwd) else None
    text = render(
        report, output_format, root=root, color=color, verbosity=verbosity, width=width, show_again=show_again
    )
    encoding = getattr(file, "encoding", None) or "utf-8"  # a StringIO has none
    file.write(text.encode(encoding, "replace").decode(encoding))
    file.flush()


def trackers(_: Any, __: Any, names: Sequence[str]) -> tuple[str, ...]:
    """The value of --log. Raises UsageError now, before hours of training, for a tracker that is not known."""
    if names:
        from precaudit.integrations.logs import check

        return tuple(check(name) for name in names)
    return ()


def send(report: Report, logs: Iterable[str]) -> list[PrecauditError]:
    """Sends the report to each tracker; what kept some of them from it."""
    failures: list[PrecauditError] = []
    for destination in logs:
        from precaudit.integrations.logs import log

        try:
            log(report, destination)
        except PrecauditError as error:
            failures.append(error)
    return failures


SUMMARY_BYTES = 1_000_000
"""GitHub drops a step's whole summary where it is larger than 1 MiB."""


def tell_github(report: Report, verbosity: int = 0, annotate: bool = False) -> None:
    """Under GitHub Actions: the report as the job's summary; with `annotate` its findings as annotations on stderr.

    Where the summary cannot be written one line says so, and nothing fails.
    """
    if os.environ.get("GITHUB_ACTIONS") != "true":
        return
    from precaudit.report import render

    root = Path(report.run.cwd) if report.run is not None and os.path.isdir(report.run.cwd) else None
    if annotate:
        for line in render(report, "github", root=root, verbosity=verbosity).splitlines():
            if line.startswith("::"):
                print(line, file=sys.stderr, flush=True)
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if not path:
        return
    text = render(report, "md", root=root, verbosity=verbosity).encode()
    if len(text) > SUMMARY_BYTES:
        text = text[:SUMMARY_BYTES].rpartition(b"\n")[0] + b"\n\nThe rest is left out: GitHub takes 1 MiB.\n"
    try:
        disk.append(Path(path), text.decode(errors="ignore"))
    except OSError as error:
        say(f"GITHUB_STEP_SUMMARY: {path}: cannot be written: {error.strerror}; the report is in the log")


def check_format(output_format: str) -> None:
    """Raises UsageError now, before hours of training, for a format that does not exist."""
    from precaudit.report import FORMATS

    if output_format not in FORMATS:
        near = difflib.get_close_matches(output_format, FORMATS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"allowed: {', '.join(FORMATS)}"
        raise UsageError(f"--output-format: '{output_format}' is not an output format; {hint}")


ENDINGS = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".sarif": "sarif",
    ".xml": "junit",
    ".md": "md",
    ".html": "html",
    ".txt": "text",
}
"""What a file is written in where only its name says so."""


WITH_RUN = frozenset({"json", "jsonl", "html"})
"""The formats that say which run a report is of."""


def format_of(output: Path | None, chosen: str | None, default: str) -> str:
    """The format to write: the one asked for, else what the file's ending says, else the default. Raises UsageError."""
    if chosen:
        check_format(chosen)
        return chosen
    return ENDINGS.get(output.suffix, default) if output is not None else default


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
