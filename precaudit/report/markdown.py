"""The report in Markdown, for pull request comments and job summaries."""

from __future__ import annotations

from precaudit.model.wire import Finding, Report
from precaudit.report import View, words
from precaudit.report.headline import headline
from precaudit.report.markup import block, cell, code, inline, text
from precaudit.report.roles import Row, allowed, columns, rows, unseen
from precaudit.report.source import Source
from precaudit.report.stories import Story, stories

LANGUAGES = {".py": "python", ".ipynb": "python", ".json": "json", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml"}


def render(report: Report, view: View) -> str:
    """Verdict, role table, findings worst first with their source lines, and what was not observed."""
    source = Source(view.root)
    parts = [
        "## precaudit: " + text(words.verdict(report) if report.command == "check" else headline(report, rows(report))),
        text(words.one_line(words.opening(report))),
    ]
    if report.command != "check" and report.roles:
        parts.append(_roles(rows(report), report))
    for story in stories(words.loud(report, view.verbosity), by_rule=report.command != "check"):
        parts += _story(story, source, report)
    if given := words.allowed(report):
        parts.append("### Allowed")
        parts.append("\n".join(_allowance(finding) for finding in given))
    if reasons := unseen(rows(report), report):
        parts.append("### Not observed")
        parts.append("\n".join(f"- {text(name)}: {text(why)}" for name, why in reasons.items()))
    extra = [*(f"skipped: {path}" for path in report.coverage.skipped), *report.coverage.notes]
    if ran := words.compiled(report):
        extra.append(f"compiled: {ran}")
    extra += words.overhead(report)
    if extra:
        parts.append("\n".join(f"- {text(line)}" for line in extra))
    parts.append(text(words.one_line(words.closing(report, view.verbosity, view.show_again))))
    return "\n\n".join(part for part in parts if part) + "\n"


def _roles(table: list[Row], report: Report) -> str:
    dtypes = columns(table)
    memory = words.memory(report)
    lines = ["| " + " | ".join(["role", "wanted", *(text(d) for d in dtypes), memory, "verdict"]) + " |"]
    lines.append("|---|---|" + "---:|" * (len(dtypes) + 1) + "---|")
    for row in table:
        held = [f"{row.tensors[d]:,}" if d in row.tensors else "-" for d in dtypes]
        verdict = (
            " ".join(["**not ok**", *(map(inline, row.rules) if row.rules else ["not selected"])])
            if row.verdict == "violation"
            else row.verdict.replace("-", " ")
        )
        memory = words.size(row.bytes) if row.bytes else "-"
        lines.append("| " + " | ".join([text(row.label), inline(row.wanted), *held, memory, verdict]) + " |")
    excused = [f"{text(what)} is allowed, because {text(why)}." for what, why in allowed(table).items()]
    return "\n\n".join(["\n".join(lines), *excused])


def _story(story: Story, source: Source, report: Report) -> list[str]:
    lead = story.lead
    parts = [f"### {lead.severity.value}: {inline(lead.rule)} {inline(lead.name)}", text(lead.message)]
    line = source.line_of(lead)
    if at := words.place(lead):
        parts.append(code(at))
    if line is not None and line.strip():
        suffix = "." + (lead.path or "").rpartition(".")[2]
        parts.append(block(words.visible(line.strip()), LANGUAGES.get(suffix, "")))
    facts = []
    if lead.module:
        facts.append(f"- module: {code(lead.module)}")
    if measured := words.evidence(lead):
        facts.append(f"- evidence: {text('; '.join(measured))}")
    if lead.cause:
        at = words.place(lead.cause)
        facts.append(f"- cause: {text(lead.cause.text)}" + (f": {code(at)}" if at else ""))
    if lead.fix:
        facts.append(f"- fix: {text(lead.fix)}")
    if price := words.cost(lead, report.coverage.ranks):
        facts.append(f"- cost: {text(price)}")
    if facts:
        parts.append("\n".join(facts))
    if story.consequences:
        head = "| also | where | what |\n|---|---|---|"
        parts.append("\n".join([head, *(_consequence(finding) for finding in story.consequences)]))
    return parts


def _allowance(finding: Finding) -> str:
    at = f" {code(words.place(finding))}" if finding.path else ""
    return f"- {inline(finding.rule)}{at} {text(words.excuse(finding))}"


def _consequence(finding: Finding) -> str:
    told = "; ".join([finding.message, *words.evidence(finding)])
    return f"| {finding.severity.value} {inline(finding.rule)} | {cell(words.place(finding)) or '-'} | {text(told)} |"
