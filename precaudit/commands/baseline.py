"""`precaudit baseline`: accepts today's findings, so that only new ones fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from precaudit import baseline as store
from precaudit import settings as settings_module
from precaudit.commands import check as checking


@click.command()
@click.argument("paths", nargs=-1, type=click.Path())
@click.option("--output", type=click.Path(), help=f"The file to write; {store.DEFAULT_NAME} by default.")
@click.option("--prune", is_flag=True, help="Only remove what is no longer found; accept nothing new.")
def baseline(paths: tuple[str, ...], output: str | None, prune: bool) -> None:
    """Accept the findings of today in a baseline file.

    \b
    precaudit baseline src/ && precaudit check src/ --baseline .precaudit-baseline.json
    """
    from dataclasses import replace

    settings = replace(settings_module.load(), baseline="")
    given: dict[str, Any] = {"no_cache": False, "jobs": 0}
    discovered, results = checking.collect(paths or (".",), settings, given)
    report = checking.build(results, settings, len(results), discovered.skipped)
    path = Path(output or settings.root / store.DEFAULT_NAME)
    present = store.entries([f for f in report.findings if not f.suppressed], path.resolve().parent)
    before = store.load(path) if path.exists() else {}
    kept = [entry for entry in present if entry.key in before] if prune else present
    store.save(path, kept)
    gone = len(set(before) - {entry.key for entry in kept})
    click.echo(f"{path}: {len(kept)} accepted, {gone} removed")
