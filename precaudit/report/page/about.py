"""The card of the run, and what of it was not seen."""

from __future__ import annotations

import re
import shlex

from precaudit.model.wire import Report, Run
from precaudit.report import words
from precaudit.report.evidence import share
from precaudit.report.page.parts import e, section
from precaudit.report.roles import rows, unseen


def run_card(run: Run) -> str:
    """Which run this is a report of."""
    facts = {
        "Command": f"<code>{e(shlex.join(run.argv))}</code>",
        "Started": f"{e(_moment(run.started))}, for {e(words.duration(run.duration_s))}",
        "Model": e(run.model) + (f", {run.parameters:,} parameters" if run.parameters else ""),
        "Host": e(run.host) + (f", {e(run.gpu)}" if run.gpu else ""),
        "Folder": f"<code>{e(run.cwd)}</code>",
        "Commit": f"<code>{e(run.commit)}</code>" + (" with uncommitted changes" if run.dirty else ""),
        "Versions": e(", ".join([f"Python {run.python}", *(f"{name} {v}" for name, v in run.versions.items())])),
    }
    for name in ("Model",) * (not run.model) + ("Commit",) * (not run.commit):
        del facts[name]
    return section(
        "run", "Run", ["<dl>", *(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts.items()), "</dl>"]
    )


def _moment(text: str) -> str:
    """A moment as people write it; what is no moment stays as it is."""
    return re.sub(r"^(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)(?:\.\d+)?\+00:00$", r"\1 \2 UTC", text)


def not_observed(report: Report) -> str:
    cover = report.coverage
    reasons = unseen(rows(report), report)
    parts = []
    if reasons:
        items = (
            f"<dt>{e(name)}</dt><dd>{e(reason) or '<span class=dim>did not occur</span>'}</dd>"
            for name, reason in reasons.items()
        )
        parts.append(f"<dl>{''.join(items)}</dl>")
    more = [f"skipped: {path}" for path in cover.skipped] + cover.notes
    if cover.unattributed_ops:
        part = share(cover.unattributed_ops)
        more.append(f"not judged: {part} of the operations, which are neither weights, loss, norm nor matmul")
    if ran := words.compiled(report):
        more.append(f"compiled: {ran}")
    if measured := words.overhead(report):
        more.append("overhead of the trace: " + "; ".join(measured))
    if more:
        parts.append("<ul>" + "".join(f"<li>{e(line)}</li>" for line in more) + "</ul>")
    title = "Not observed, and how it was looked at" if reasons else "How it was looked at"
    return section("not-observed", title, parts) if parts else ""
