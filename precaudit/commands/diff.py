"""`precaudit diff`: what two reports say otherwise of one training: roles, tensors, bytes, findings."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from precaudit.contracts.between import Difference


@click.command(short_help="Compare two reports of one training.")
@click.argument("before", type=click.Path(path_type=Path), metavar="A")
@click.argument("after", type=click.Path(path_type=Path), metavar="B")
@click.option("--output-format", type=click.Choice(["text", "json"]), default="text", show_default=True)
def diff(before: Path, after: Path, output_format: str) -> int:
    """Compare two reports, or two runs of "precaudit runs"; exit with 1 where they differ.

    \b
    precaudit trace --output monday.json train.py
    precaudit trace --output friday.json train.py
    precaudit diff monday.json friday.json
    precaudit diff 3fa2 91bc
    """
    from precaudit import settings
    from precaudit.contracts.between import difference
    from precaudit.launch.runs import find
    from precaudit.launch.save import HOME

    home = Path(settings.load().output_dir or HOME)
    before, after = (path if path.exists() else find(home, str(path)) or path for path in (before, after))
    found = difference(before, after)
    if output_format == "json":
        print(json.dumps(asdict(found), indent=1))
    else:
        for line in _lines(before, after, found):
            print(line)
    return 1 if found.changes or found.came or found.went else 0


def _lines(before: Path, after: Path, found: Difference) -> list[str]:
    from precaudit.report.words import size

    lines = [f"{change}" for change in found.changes]
    lines += [
        f"{role.replace('_', ' ')}: {size(now)} per rank, {size(was)} before"
        for role, (was, now) in found.bytes_by_role.items()
    ]
    lines += [f"new: {line}" for line in found.came] + [f"gone: {line}" for line in found.went]
    if not lines:
        lines = [f"{before} and {after} hold the same"]
    lines += [f"versions: {change}" for change in found.versions]
    return lines + [f"not compared: {line}" for line in found.left_out]
