"""`precaudit diff`: what two reports, runs or checkpoints of one training say otherwise: tensors, bytes, findings."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from precaudit.contracts.between import Difference
    from precaudit.model.wire import Report


@click.command(short_help="Compare two reports, runs or checkpoints of one training.")
@click.argument("before", type=click.Path(path_type=Path), metavar="A")
@click.argument("after", type=click.Path(path_type=Path), metavar="B")
@click.option("--output-format", type=click.Choice(["text", "json"]), default="text", show_default=True)
def diff(before: Path, after: Path, output_format: str) -> int:
    """Compare two reports, two runs of "precaudit runs", or two checkpoints; exit with 1 where they differ.

    Of two runs with --exact values are compared too: they differ where more than both runs' own rounding does.

    \b
    precaudit trace --output monday.json train.py
    precaudit trace --output friday.json train.py
    precaudit diff monday.json friday.json
    precaudit diff 3fa2 91bc
    precaudit diff out/checkpoint-500 out/checkpoint-1000
    """
    from precaudit import settings
    from precaudit.contracts.between import difference
    from precaudit.launch.runs import find
    from precaudit.launch.save import HOME

    home = Path(settings.load().output_dir or HOME)
    before, after = (path if path.exists() else find(home, str(path)) or path for path in (before, after))
    found = difference(_report(before), _report(after), (before, after))
    if output_format == "json":
        print(json.dumps(asdict(found), indent=1))
    else:
        for line in _lines(before, after, found):
            print(line)
    return 1 if found.changes or found.came or found.went or found.values else 0


def _report(path: Path) -> Report:
    """The report that is there; of a checkpoint, the one that `precaudit checkpoint` would make now."""
    from precaudit.launch.gather import holds_report, read_report

    if not path.exists() or path.suffix == ".json" or holds_report(path):
        return read_report(path)
    from precaudit import rulebook
    from precaudit.checkpoint.run import examine
    from precaudit.commands.checkpoint import build
    from precaudit.model.wire import Held

    book = rulebook.load()
    found = examine([str(path)])
    if not found.tensors:
        return read_report(path)
    report = build(found, frozenset(book.rules), book)
    rows: dict[str, dict[str, list[str]]] = {}
    for name, held in found.held:
        rows.setdefault(name, {}).update(held)
    report.inventory = [Held(name=name, tensors=1, dtypes=dtypes) for name, dtypes in rows.items()]
    return report


def _lines(before: Path, after: Path, found: Difference) -> list[str]:
    from precaudit.report.words import size

    lines = [*map(str, found.changes), *found.values]
    lines += [
        f"{role.replace('_', ' ')}: {size(now)} per rank, {size(was)} before"
        for role, (was, now) in found.bytes_by_role.items()
    ]
    lines += [f"new: {line}" for line in found.came] + [f"gone: {line}" for line in found.went]
    if not lines:
        lines = [f"{before} and {after} hold the same"]
    lines += [f"versions: {change}" for change in found.versions]
    return lines + [f"not compared: {line}" for line in found.left_out]
