"""The report as one HTML file without network: phone and wide screen, light and dark, mouse and keyboard."""

from __future__ import annotations

from precaudit.model.wire import Report, Severity
from precaudit.report import View, exactpage, words
from precaudit.report.headline import headline
from precaudit.report.page import frame
from precaudit.report.page.about import not_observed, run_card
from precaudit.report.page.allowances import allowances
from precaudit.report.page.findings import index, story
from precaudit.report.page.memory import memory
from precaudit.report.page.modules import modules
from precaudit.report.page.parts import e, section
from precaudit.report.page.ranks import ranks
from precaudit.report.page.roles import roles
from precaudit.report.page.timeline import timeline
from precaudit.report.page.updates import updates
from precaudit.report.page.values import values
from precaudit.report.roles import rows
from precaudit.report.source import Source
from precaudit.report.stories import stories


def render(report: Report, view: View) -> str:
    """The whole report, notes included; every string from outside is escaped."""
    source = Source(view.root)
    grouped = stories(words.loud(report, verbosity=1), by_rule=report.command != "check")
    told = [(f"finding-{number}", one) for number, one in enumerate(grouped, start=1)]
    loud = [(anchor, one) for anchor, one in told if one.lead.severity is not Severity.NOTE]
    quiet = [(anchor, one) for anchor, one in told if one.lead.severity is Severity.NOTE]
    picture, many = report.picture, report.coverage.ranks
    sections = {
        "Run": run_card(report.run) if report.run is not None else "",
        "Roles": roles(report, told),
        "Findings": section("findings", "Findings", [index(loud), *(story(a, s, source, report) for a, s in loud)])
        if loud
        else "",
        "Allowed": allowances(report),
        "Notes": section("notes", "Notes", [story(a, s, source, report) for a, s in quiet]) if quiet else "",
        "Updates lost": updates(report),
        "Values": values(picture, many),
        "Step": timeline(picture.timeline, picture.rank, many) if picture is not None else "",
        "Exact step": section("exact", "Exact step", exactpage.content(report.exact, many)) if report.exact else "",
        "Memory": memory(report),
        "Modules": modules(report),
        "Ranks": ranks(report),
        "Coverage": not_observed(report),
    }
    links = (f'<a href="#{_key(text)}">{name}</a>' for name, text in sections.items() if text)
    worst = loud[0][1].lead.severity.value if loud else "ok" if report.status == "clean" else "note"
    first = words.verdict(report) if report.command == "check" else headline(report, rows(report))
    return frame.page(
        search=bool(sections["Modules"]),
        title=e(f"precaudit: {words.verdict(report)}"),
        worst=worst,
        verdict=e(first[:1].upper() + first[1:]),
        opening="".join(f"<li>{e(part)}</li>" for part in [*words.opening(report), *words.mending(report)]),
        links="".join(links),
        body="\n".join(text for text in sections.values() if text),
        closing=e(words.one_line(part for part in words.closing(report, 1) if not part.startswith("next: "))),
    )


def _key(text: str) -> str:
    return text.partition('id="')[2].partition('"')[0]
