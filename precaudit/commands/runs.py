"""`precaudit runs`: the runs whose reports are kept, newest first."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import click

from precaudit import settings as settings_module
from precaudit.commands.output import say


@click.command(short_help="List the runs whose reports are kept.")
@click.option("--output-dir", metavar="FOLDER", help="Where they are kept.  [default: .precaudit]")
@click.option("--output-format", type=click.Choice(["text", "json"]), default="text", show_default=True)
def runs(output_dir: str | None, output_format: str) -> int:
    """List runs, newest first; a name, or the beginning of one, is enough for report and diff.

    \b
    precaudit runs
    precaudit report 3fa2
    precaudit diff 3fa2 91bc
    """
    from precaudit.launch import runs as kept
    from precaudit.launch.save import HOME

    home = Path(output_dir or settings_module.load().output_dir or HOME)
    rows = [kept.summary(folder) for folder in kept.finished(home)]
    if output_format == "json":
        print(json.dumps(rows, indent=1))
        return 0
    for row in rows:
        print(_line(row))
    if not rows:
        say(f"{home / kept.FOLDER}: no run is kept here; make one: precaudit trace <your training command>")
    return 0


def _line(row: dict[str, Any]) -> str:
    from precaudit.report.words import duration, one_line, plural, visible

    name = Path(row["folder"]).name
    if "error" not in row:
        return one_line([name, row["status"]])
    found = one_line([row["status"], plural(row["error"], "error"), plural(row["warning"], "warning")])
    commit = (row.get("commit") or "")[:8] + ("+" if row.get("dirty") else "")
    words = [name, found, duration(row.get("duration_s") or 0.0), commit, shlex.join(row.get("argv") or [])]
    return visible(one_line(words))
