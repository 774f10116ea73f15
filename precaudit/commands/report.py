"""`precaudit report`: shows a report again in another format, or merges those of several nodes."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import click

from precaudit.commands.output import check_format, chosen_rules, print_report


@click.command(short_help="Show the latest report again, or merge several.")
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path), metavar="[REPORT|FOLDER]...")
@click.option("--output-format", default="text", show_default=True, metavar="FORMAT", help="How to show it.")
@click.option("--output", type=click.Path(path_type=Path), metavar="FILE", help="Write it here instead of stdout.")
@click.option(
    "--fail-on",
    type=click.Choice(["error", "warning", "note", "never"]),
    default="error",
    show_default=True,
    help="Exit with 1 from this severity on.",
)
@click.option("--select", multiple=True, metavar="RULES", help="Only these rules: ids, names or prefixes (PA3).")
@click.option("--ignore", multiple=True, metavar="RULES", help="Not these rules.")
@click.option("-v", "--verbose", count=True, help="Also notes and details.")
def report(
    paths: tuple[Path, ...],
    output_format: str,
    output: Path | None,
    fail_on: str,
    select: tuple[str, ...],
    ignore: tuple[str, ...],
    verbose: int,
) -> int:
    """Show the latest report, or the ones named, merged; nothing is run again.

    \b
    precaudit report --output-format html --output report.html
    precaudit report node0/report.json node1/report.json
    """
    from precaudit import rulebook
    from precaudit.launch.gather import gather
    from precaudit.launch.save import check_writable, latest, write_atomically
    from precaudit.launch.trace import Choice
    from precaudit.launch.verdict import CLEAN, FINDINGS, INCONCLUSIVE, reaches

    check_format(output_format)
    if output is not None:
        check_writable(output)
    book = rulebook.load()
    choice = Choice(chosen_rules(book, select, ignore), fail_on=fail_on)
    merged = gather(paths or latest(), choice, book)
    if output is None:
        print_report(merged, output_format, sys.stdout, verbosity=verbose)
    else:
        text = io.StringIO()
        print_report(merged, output_format, text, verbosity=verbose)
        write_atomically(output, text.getvalue())
    if merged.status == "inconclusive" or (merged.status == "script-failed" and not merged.findings):
        return INCONCLUSIVE
    return FINDINGS if reaches(merged.findings, fail_on) else CLEAN
