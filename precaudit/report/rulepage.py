"""The rule table and each rule's page in plain text and in Markdown: for SARIF, the docs and `precaudit rules`."""

from __future__ import annotations

from precaudit.model.wire import Case, Rule, Severity
from precaudit.report import markup
from precaudit.rulebook import Rulebook

INTRO = """\
# Rules

What must stay in float32 in a training run, what may be low, and what else goes wrong with mixed precision. `check`
reads source and configuration, `trace` watches a real run, `checkpoint` reads saved files. Where two severities stand,
measured damage, or the case, decides: the plain case comes first. Notes are shown with `-v`.

Silence one line with `# precaudit: ignore[PA301] - the reason`.
"""


def grades(rule: Rule) -> list[str]:
    """Every severity the rule may earn, the plain case first."""
    levels = [rule.severity, *(grade.severity for grade in rule.grades)]
    names = (level.value if isinstance(level, Severity) else level for level in levels)
    return list(dict.fromkeys(name for name in names if name != "silent"))


def why(rule: Rule) -> str:
    return " ".join(rule.why.split())


def plain_page(rule: Rule) -> str:
    """One rule in plain paragraphs."""
    parts = [f"{rule.title}.", why(rule), f"Fix: {rule.fix}.", f"Ignore it when: {rule.ignore_when}"]
    return "\n\n".join(parts)


def rule_markdown(rule: Rule, level: int = 2) -> str:
    """One rule as a Markdown page: what, why, wrong and right code, fixes, when to ignore, references."""
    head = "#" * level
    lines = [
        f"{head} {rule.id} {rule.name}",
        f"{markup.inline(rule.title)}. *{', '.join(grades(rule))}; seen by {', '.join(rule.seen_by)}*",
        f"**Why.** {markup.inline(why(rule))}",
        "**Wrong**",
        _example(rule.wrong),
        "**Right**",
        _example(rule.right),
        f"**Fix.** {markup.inline(rule.fix)}",
    ]
    if rule.fixes:
        lines.append("\n".join(f"- {name}: {markup.inline(fix)}" for name, fix in rule.fixes.items()))
    lines.append(f"**Ignore it when.** {markup.inline(rule.ignore_when)}")
    if rule.references:
        lines.append("References: " + ", ".join(f"<{url}>" for url in rule.references))
    lines[3:3] = [told for case in rule.cases if (told := _case(case))]
    return "\n\n".join(lines) + "\n"


def _case(case: Case) -> str:
    """What the page says of a case beside the rule's own words."""
    on = [*case.dtype, *(f"{key} = {value}" for key, value in case.when.items())]
    told = [" ".join(case.why.split()), f"Fix: {case.fix}." if case.fix else ""]
    return f"**Where {markup.inline(', '.join(on))}.** " + markup.inline(" ".join(part for part in told if part))


def _example(source: str) -> str:
    start = source.lstrip()
    language = "json" if start.startswith("{") else "toml" if start.startswith("[[tool.") else "python"
    return markup.block(source, language)


def table_markdown(book: Rulebook, page: str | None = None) -> str:
    """The rule table in Markdown; `page` is the page whose sections the names link to ("" is this one), or None."""
    lines = ["| Rule | Name | Severity | Seen by | What |", "|---|---|---|---|---|"]
    for rule in book.rules.values():
        name = rule.name if page is None else f"[{rule.name}]({page}#{rule.id.lower()}-{rule.name})"
        what = markup.inline(rule.title)
        lines.append(f"| {rule.id} | {name} | {', '.join(grades(rule))} | {', '.join(rule.seen_by)} | {what} |")
    return "\n".join(lines) + "\n"


def docs_page(book: Rulebook) -> str:
    """`docs/rules.md`: the table, then one section per rule."""
    return "\n".join([INTRO, table_markdown(book, page=""), *(rule_markdown(rule) for rule in book.rules.values())])
