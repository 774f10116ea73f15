"""The findings, each with its source lines, its numbers and its reasons."""

from __future__ import annotations

from urllib.parse import urlsplit

from precaudit import rulebook
from precaudit.errors import RuleError
from precaudit.model.wire import Finding, Report, Rule
from precaudit.report import words
from precaudit.report.evidence import is_share, sentence
from precaudit.report.page.parts import badge, bar, e
from precaudit.report.rulepage import why
from precaudit.report.source import Source
from precaudit.report.stories import Story

Anchored = tuple[str, Story]
"""A story, and the name that links to it."""
CONTEXT = 2
"""Source lines shown before and after the one a finding is about."""


def source_text(text: str) -> str:
    """A piece of a source line, its tabs wide enough to see."""
    return e(text.replace("\t", "    "))


def index(told: list[Anchored]) -> str:
    if len(told) < 4:
        return ""
    items = []
    for anchor, story in told:
        more = f" <span class=dim>and {len(story.consequences)} more</span>" if story.consequences else ""
        items.append(
            f'<li>{badge(story.lead.severity.value)} <a href="#{anchor}">{e(story.lead.rule)} '
            f"{e(story.lead.name)}</a> <span class=dim>{e(words.place(story.lead))}</span>{more}</li>"
        )
    return f"<ol class=index>{''.join(items)}</ol>"


def story(anchor: str, story: Story, source: Source, report: Report) -> str:
    lead = story.lead
    rule = _known(lead.rule)
    facts = []
    if lead.module:
        facts.append(("Module", f"<code>{e(lead.module)}</code>"))
    if lead.cause:
        at = words.place(lead.cause)
        code = source.line_of(lead.cause)
        shown = f"<pre tabindex=0><code>{e(code.strip())}</code></pre>" if code and code.strip() else ""
        facts.append(("Cause", e(lead.cause.text) + (f" <code>{e(at)}</code>" if at else "") + shown))
    if lead.fix:
        facts.append(("Fix", e(lead.fix)))
    if price := words.cost(lead, report.coverage.ranks):
        facts.append(("Cost", e(price)))
    if lead.ranks and len(lead.ranks) < report.coverage.ranks:
        facts.append(("Ranks", e(", ".join(map(str, lead.ranks)))))
    return "".join(
        [
            f'<article id="{anchor}" class="{lead.severity.value}" aria-labelledby="{anchor}-t">',
            f'<h3 id="{anchor}-t">{badge(lead.severity.value)} {e(lead.rule)} ',
            f"<span class=name>{e(lead.name)}</span></h3>",
            f"<p class=message>{e(lead.message)}</p>",
            _excerpt(lead, source),
            _bars(lead),
            "<dl>" + "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts) + "</dl>" if facts else "",
            _consequences(story, report),
            _explain(rule, lead.why) if rule else "",
            "</article>",
        ]
    )


def _excerpt(finding: Finding, source: Source) -> str:
    at = words.place(finding)
    if not at:
        return "<p class=place>source line not known</p>"
    place = f"<p class=place><code>{e(at)}</code></p>"
    line = finding.line or 0
    if source.line_of(finding) is None:
        return place
    lines = []
    for number in range(max(1, line - CONTEXT), line + CONTEXT + 1):
        text = source.line(finding.path, number, finding.cell)
        if text is None:
            continue
        body = _marked(text, finding) if number == line else source_text(text)
        here = " class=here" if number == line else ""
        lines.append(f"<span{here}><span class=no>{number:>5}</span>  {body}</span>\n")
    return f"{place}<pre tabindex=0 aria-label='source of {e(at)}'><code>{''.join(lines)}</code></pre>"


def _marked(text: str, finding: Finding) -> str:
    begin = (finding.column or 0) - 1
    if begin < 0 or begin >= len(text):
        return source_text(text)
    same = finding.end_line in (None, finding.line)
    end = (finding.end_column or begin + 2) - 1 if same else len(text)
    end = min(max(end, begin + 1), len(text))
    return f"{source_text(text[:begin])}<mark>{source_text(text[begin:end])}</mark>{source_text(text[end:])}"


def _bars(finding: Finding) -> str:
    """Each measured number in words; a share also as a bar."""
    items = []
    shares = {words.visible(sentence(name, value)): value for name, value in words.measured(finding) if is_share(name)}
    for said in words.evidence(finding):
        drawn = bar(shares[said]) if said in shares else ""
        items.append(f"<li>{drawn}<span>{e(said)}</span></li>")
    return f"<ul class=evidence>{''.join(items)}</ul>" if items else ""


def _consequences(story: Story, report: Report) -> str:
    if not story.consequences:
        return ""
    title = "What else this cause did" if story.of_one_cause else "The same elsewhere"
    items = []
    for finding in story.consequences:
        said = "; ".join([*words.evidence(finding), *filter(None, [words.cost(finding, report.coverage.ranks)])])
        items.append(
            f"<li>{badge(finding.severity.value)} <b>{e(finding.rule)} {e(finding.name)}</b> "
            f"<code>{e(words.place(finding))}</code><br>{e(finding.message)}"
            + (f"<br><span class=dim>{e(said)}</span>" if said else "")
            + "</li>"
        )
    return f"<h4>{title}</h4><ul class=also>{''.join(items)}</ul>"


def _known(rule: str) -> Rule | None:
    try:
        return rulebook.load().find(rule)
    except RuleError:
        return None


def _explain(rule: Rule, reasons: str) -> str:
    links = "".join(
        f'<li><a href="{e(url)}" rel="noreferrer">{e(urlsplit(url).netloc + urlsplit(url).path)}</a></li>'
        for url in rule.references
    )
    return (
        f"<details><summary>Why {e(rule.id)}, with wrong and right code</summary><p>{e(reasons or why(rule))}</p>"
        f"<div class=pair><div><h4>Wrong</h4><pre tabindex=0><code>{_code(rule.wrong)}</code></pre></div>"
        f"<div><h4>Right</h4><pre tabindex=0><code>{_code(rule.right)}</code></pre></div></div>"
        f"<p><b>Ignore it when:</b> {e(rule.ignore_when)}</p><ul class=links>{links}</ul></details>"
    )


def _code(text: str) -> str:
    return "\n".join(e(line) for line in text.strip("\n").split("\n"))
