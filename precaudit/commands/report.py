"""`precaudit report`: shows a report again in another format, or merges those of several nodes."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import click

from precaudit import settings as settings_module
from precaudit.commands.output import chosen_rules, format_of, print_report, say, send, trackers


@click.command(short_help="Show the latest report again, or merge several.")
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path), metavar="[REPORT|FOLDER]...")
@click.option("--open", "open_it", is_flag=True, help="Write it as an HTML page beside the report, and open that.")
@click.option("--output-format", metavar="FORMAT", help="How to show it.  [default: text]")
@click.option("--output", type=click.Path(path_type=Path), metavar="FILE", help="Write it here instead of stdout.")
@click.option("--output-dir", metavar="FOLDER", help="Where reports were kept.  [default: .precaudit]")
@click.option("--log", "logs", multiple=True, metavar="TRACKER", callback=trackers,
              help="Send its values to wandb, mlflow, tensorboard, trackio or jsonl.")  # fmt: skip
@click.option(
    "--fail-on",
    type=click.Choice(["error", "warning", "note", "never"]),
    help="Exit with 1 from this severity on, and with 5 where nothing was observed.",
)
@click.option("--select", multiple=True, metavar="RULES", help="Only these rules: ids, names or prefixes (PA3).")
@click.option("--ignore", multiple=True, metavar="RULES", help="Not these rules.")
@click.option("-v", "--verbose", count=True, help="Also notes and details.")
def report(
    paths: tuple[Path, ...],
    open_it: bool,
    output_format: str | None,
    output: Path | None,
    output_dir: str | None,
    logs: tuple[str, ...],
    fail_on: str | None,
    select: tuple[str, ...],
    ignore: tuple[str, ...],
    verbose: int,
) -> int:
    """Show the latest report, or the ones named, merged; nothing is run again, and the exit code is 0.

    \b
    precaudit report --open
    precaudit report --output report.md
    precaudit report 3fa2                    # a run of "precaudit runs"
    precaudit report node0/report.json node1/report.json
    """
    from precaudit import rulebook
    from precaudit.launch.gather import gather
    from precaudit.launch.runs import abandoned, find
    from precaudit.launch.save import HOME, check_writable, latest, write_named
    from precaudit.launch.trace import Choice
    from precaudit.launch.verdict import CLEAN, FINDINGS, INCONCLUSIVE, reaches

    home = Path(output_dir or settings_module.load().output_dir or HOME)
    named = [path if path.exists() else find(home, str(path)) or path for path in paths] or latest(home)
    for left in abandoned(home)[:1] if not paths else ():
        say(str(left))
    if open_it and output is None:
        output, output_format = _page_beside(named[0]), "html"
    shape = format_of(output, output_format, "text")
    if output is not None:
        check_writable(output)
    book = rulebook.load()
    merged = gather(named, Choice(chosen_rules(book, select, ignore), fail_on=fail_on or "never"), book)
    if output is None:
        print_report(merged, shape, sys.stdout, verbosity=verbose)
    else:
        text = io.StringIO()
        print_report(merged, shape, text, verbosity=verbose)
        write_named(output, text.getvalue())
    if open_it and output is not None:
        _open(output)
    if failures := send(merged, logs):
        raise failures[0]
    if fail_on is None:
        return CLEAN
    if merged.status == "inconclusive" or (merged.status == "script-failed" and not merged.findings):
        return INCONCLUSIVE
    return FINDINGS if reaches(merged.findings, fail_on) else CLEAN


def _page_beside(report: Path) -> Path:
    return report / "report.html" if report.is_dir() else report.with_suffix(".html")


def _open(page: Path) -> None:
    """Opens the page in a browser with windows; where there is none, says where it lies."""
    import webbrowser

    windows = sys.platform in ("darwin", "win32") or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
    )
    opened = windows and webbrowser.open(page.resolve().as_uri())
    say(f"{page}: {'opened' if opened else 'written; open it in a browser'}")
