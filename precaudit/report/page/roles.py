"""The role table as a heat map, roles by dtypes: what breaks a rule leads to its finding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from precaudit.model.wire import Report, Severity
from precaudit.report import words
from precaudit.report.page.findings import Anchored
from precaudit.report.page.parts import badge, e, section, wide
from precaudit.report.roles import Row, allowed, columns, rows

SIGNS = {"violation": "✕", "allowed": "~", "ok": "✓"}
"""What a cell is, beside its colour."""
SHADES = ((0.05, "few"), (0.5, "some"), (0.999, "many"), (2.0, "all"))
"""Up to which share of a role's tensors a cell is how dark."""


def roles(report: Report, told: Sequence[Anchored]) -> str:
    """The heat map; roles that were not seen have a row, too."""
    if report.command == "check" or not report.roles:
        return ""
    table = rows(report)
    dtypes = columns(table)
    findings = [(finding, anchor) for anchor, story in told for finding in (story.lead, *story.consequences)]
    by_rule = {finding.rule: anchor for finding, anchor in reversed(findings)}
    by_cell = {(finding.role or "", finding.dtype): anchor for finding, anchor in reversed(findings)}
    verdicts = {(row.role, words.visible(row.dtype)): row.verdict for row in report.roles if row.dtype}
    memory = words.memory(report).replace("/", " per ").capitalize()
    head = "<th scope=col>Role</th>" + "".join(f"<th scope=col class=n>{e(name)}</th>" for name in dtypes)
    head += f"<th scope=col class='n roomy'>{e(memory)}</th>"  # roomy: not on a phone
    head += "<th scope=col class=roomy>Wanted</th><th scope=col>Verdict</th>"
    body = "".join(_row(row, dtypes, verdicts, by_rule, by_cell) for row in table)
    key = "Number of tensors. " + ", ".join(
        f"{sign} {words.visible(name) if name != 'violation' else 'breaks a rule'}" for name, sign in SIGNS.items()
    )
    return section(
        "roles",
        "Roles",
        [
            wide("roles-title", f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"),
            f"<p class=dim>{e(key)}; the darker, the more of the role.</p>",
            *(f"<p>{e(what)} is allowed, because {e(why)}.</p>" for what, why in allowed(table).items()),
        ],
    )


def _row(
    row: Row,
    dtypes: Sequence[str],
    verdicts: Mapping[tuple[str, str], str],
    by_rule: Mapping[str, str],
    by_cell: Mapping[tuple[str, str], str],
) -> str:
    memory = words.size(row.bytes) if row.bytes else "–"
    if row.verdict == "violation":
        level = (row.worst or Severity.ERROR).value
        links = " ".join(f'<a href="#{by_rule[r]}">{e(r)}</a>' if r in by_rule else e(r) for r in row.rules)
        verdict = f"{badge(level)} {links or 'not selected'}"
    else:
        verdict = f'<span class="badge {row.verdict}">{row.verdict.replace("-", " ")}</span>'
    cells = "".join(
        _cell(row, dtype, verdicts.get((row.role, dtype), row.verdict), by_cell.get((row.role, dtype), ""))
        for dtype in dtypes
    )
    return (
        f'<tr class="{row.verdict}"><th scope=row>{e(row.label)}</th>{cells}'
        f"<td class='n roomy'>{memory}</td><td class=roomy>{e(row.wanted)}</td><td>{verdict}</td></tr>"
    )


def _cell(row: Row, dtype: str, verdict: str, anchor: str) -> str:
    count = row.tensors.get(dtype)
    if count is None:
        return "<td class='n none'>–</td>"
    share = count / max(sum(row.tensors.values()), 1)
    shade = next(name for most, name in SHADES if share < most)
    text = f"<span aria-hidden=true>{SIGNS.get(verdict, '')}</span> {count:,}"
    said = f'<a href="#{anchor}" title="to the finding">{text}</a>' if anchor and verdict == "violation" else text
    return f'<td class="n heat {verdict} {shade}">{said}</td>'
