"""How much of its updates each parameter lost to rounding, worst first."""

from __future__ import annotations

from precaudit.model.wire import PartOf, Report
from precaudit.report import words
from precaudit.report.evidence import share
from precaudit.report.page.parts import bar, e, section, wide


def updates(report: Report) -> str:
    """A bar for each parameter, or pattern of several, that a finding has such a number of."""
    found = lost(report)
    if not found:
        return ""
    of = {part.name: part.evidence["updates_lost"] for part in found}
    body = "".join(
        f"<tr><th scope=row><code>{e(part.name)}</code></th><td class=n>{part.tensors:,}</td>"
        f"<td class=size>{bar(of[part.name])}<span>{share(of[part.name])}</span></td></tr>"
        for part in found
    )
    head = "<th scope=col>Parameter</th><th scope=col class=n>Tensors</th><th scope=col>Updates lost</th>"
    few = words.plural(len(found), "row")
    return section(
        "updates",
        "Updates lost",
        [
            "<p>Elements whose update in float32 is not zero, and which did not change at all.</p>",
            wide("updates-title", f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"),
            f"<p class=dim>{few}, the worst first.</p>" if len(found) > 1 else "",
        ],
    )


def lost(report: Report) -> list[PartOf]:
    """The parts of all findings for which it was measured; of one name the worst."""
    worst: dict[str, PartOf] = {}
    for finding in report.findings:
        for part in finding.parts if not finding.suppressed else ():
            if "updates_lost" in part.evidence:
                known = worst.get(part.name)
                if known is None or known.evidence["updates_lost"] < part.evidence["updates_lost"]:
                    worst[part.name] = part
    return sorted(worst.values(), key=lambda part: -part.evidence["updates_lost"])
