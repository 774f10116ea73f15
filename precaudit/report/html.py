"""The report as one HTML file without network: phone and wide screen, light and dark, mouse and keyboard."""

from __future__ import annotations

import html
import shlex
from string import Template
from urllib.parse import urlsplit

from precaudit import rulebook
from precaudit.errors import RuleError
from precaudit.model.wire import Finding, Report, Rule, Run, Severity
from precaudit.report import View, exactpage, words
from precaudit.report.evidence import is_share, share
from precaudit.report.roles import Row, allowed, columns, rows, unseen
from precaudit.report.rulepage import why
from precaudit.report.source import Source
from precaudit.report.stories import Story, stories

Anchored = tuple[str, Story]
"""A story, and the name that links to it."""
CONTEXT = 2
"""Source lines shown before and after the one a finding is about."""


def render(report: Report, view: View) -> str:
    """The whole report, notes included; every string from outside is escaped."""
    source = Source(view.root)
    grouped = stories(words.loud(report, verbosity=1), by_rule=report.command != "check")
    told = [(f"finding-{number}", story) for number, story in enumerate(grouped, start=1)]
    loud = [(anchor, story) for anchor, story in told if story.lead.severity is not Severity.NOTE]
    quiet = [(anchor, story) for anchor, story in told if story.lead.severity is Severity.NOTE]
    sections = [
        _run(report.run) if report.run is not None else "",
        _roles(rows(report), report, told) if report.command != "check" and report.roles else "",
        _section("findings", "Findings", [_index(loud), *(_story(a, s, source, report) for a, s in loud)])
        if loud
        else "",
        _section("notes", "Notes", [_story(a, s, source, report) for a, s in quiet]) if quiet else "",
        _section("exact", "Exact step", exactpage.content(report.exact, report.coverage.ranks)) if report.exact else "",
        _unseen(report),
    ]
    names = {
        "run": "Run", "roles": "Roles", "findings": "Findings", "notes": "Notes", "exact": "Exact step",
        "not-observed": "Coverage",
    }  # fmt: skip
    links = [f'<a href="#{key}">{name}</a>' for key, name in names.items() if any(f'id="{key}"' in s for s in sections)]
    worst = loud[0][1].lead.severity.value if loud else "ok" if report.status == "clean" else "note"
    return PAGE.substitute(
        style=STYLE,
        title=_e(f"precaudit: {words.verdict(report)}"),
        worst=worst,
        verdict=_e(words.verdict(report)[:1].upper() + words.verdict(report)[1:]),
        opening="".join(f"<li>{_e(part)}</li>" for part in words.opening(report)),
        links="".join(links),
        body="\n".join(section for section in sections if section),
        closing=_e(words.one_line(part for part in words.closing(report, 1) if not part.startswith("next: "))),
    )


def _e(text: object) -> str:
    return html.escape(words.visible(str(text)))


def _line(text: str) -> str:
    """A piece of a source line, its tabs wide enough to see."""
    return _e(text.replace("\t", "    "))


def _section(key: str, title: str, parts: list[str]) -> str:
    return (
        f'<section id="{key}" aria-labelledby="{key}-title"><h2 id="{key}-title">{title}</h2>{"".join(parts)}</section>'
    )


# ---------------------------------------------------------------------------------------------- run


def _run(run: Run) -> str:
    """Which run this is a report of."""
    facts = {
        "Command": f"<code>{_e(shlex.join(run.argv))}</code>",
        "Started": f"{_e(run.started)}, for {_e(words.duration(run.duration_s))}",
        "Model": _e(run.model) + (f", {run.parameters:,} parameters" if run.parameters else ""),
        "Host": _e(run.host) + (f", {_e(run.gpu)}" if run.gpu else ""),
        "Folder": f"<code>{_e(run.cwd)}</code>",
        "Commit": f"<code>{_e(run.commit)}</code>" + (" with uncommitted changes" if run.dirty else ""),
        "Versions": _e(", ".join([f"Python {run.python}", *(f"{name} {v}" for name, v in run.versions.items())])),
    }
    for name in ("Model",) * (not run.model) + ("Commit",) * (not run.commit):
        del facts[name]
    return _section(
        "run", "Run", ["<dl>", *(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts.items()), "</dl>"]
    )


# ---------------------------------------------------------------------------------------------- roles


def _roles(table: list[Row], report: Report, told: list[Anchored]) -> str:
    dtypes = columns(table)
    anchors = {
        finding.rule: anchor for anchor, story in reversed(told) for finding in (story.lead, *story.consequences)
    }
    memory = words.memory(report).replace("/", " per ").capitalize()
    head = "".join(f"<th scope=col>{_e(name)}</th>" for name in ["Role", "Verdict", "Wanted"])
    head += "".join(f"<th scope=col class=n>{_e(name)}</th>" for name in [*dtypes, memory])
    body = "".join(_role(row, dtypes, anchors) for row in table)
    return _section(
        "roles",
        "Roles",
        [
            "<div class=wide role=region aria-labelledby=roles-title tabindex=0><table><thead><tr>",
            f"{head}</tr></thead><tbody>{body}</tbody></table></div>",
            *(f"<p>{_e(what)} is allowed, because {_e(why)}.</p>" for what, why in allowed(table).items()),
        ],
    )


def _role(row: Row, dtypes: list[str], anchors: dict[str, str]) -> str:
    held = "".join(
        f"<td class=n>{row.tensors[d]:,}</td>" if d in row.tensors else "<td class='n none'>–</td>" for d in dtypes
    )
    memory = words.size(row.bytes) if row.bytes else "–"
    if row.verdict == "violation":
        level = (row.worst or Severity.ERROR).value
        links = " ".join(f'<a href="#{anchors[r]}">{_e(r)}</a>' if r in anchors else _e(r) for r in row.rules)
        verdict = f"{_badge(level)} {links or 'not selected'}"
    else:
        verdict = f'<span class="badge {row.verdict}">{row.verdict.replace("-", " ")}</span>'
    wanted = _e(row.wanted)
    return (
        f'<tr class="{row.verdict}"><th scope=row>{_e(row.label)}</th><td>{verdict}</td>'
        f"<td>{wanted}</td>{held}<td class=n>{memory}</td></tr>"
    )


# ---------------------------------------------------------------------------------------------- findings


def _badge(level: str) -> str:
    sign = {"error": "✕", "warning": "!", "note": "i"}.get(level, "")
    return f'<span class="badge {level}"><span aria-hidden=true>{sign}</span> {level}</span>'


def _index(told: list[Anchored]) -> str:
    if len(told) < 4:
        return ""
    items = []
    for anchor, story in told:
        more = f" <span class=dim>and {len(story.consequences)} more</span>" if story.consequences else ""
        items.append(
            f'<li>{_badge(story.lead.severity.value)} <a href="#{anchor}">{_e(story.lead.rule)} '
            f"{_e(story.lead.name)}</a> <span class=dim>{_e(words.place(story.lead))}</span>{more}</li>"
        )
    return f"<ol class=index>{''.join(items)}</ol>"


def _story(anchor: str, story: Story, source: Source, report: Report) -> str:
    lead = story.lead
    rule = _known(lead.rule)
    facts = []
    if lead.module:
        facts.append(("Module", f"<code>{_e(lead.module)}</code>"))
    if lead.cause:
        at = words.place(lead.cause)
        code = source.line_of(lead.cause)
        shown = f"<pre tabindex=0><code>{_e(code.strip())}</code></pre>" if code and code.strip() else ""
        facts.append(("Cause", _e(lead.cause.text) + (f" <code>{_e(at)}</code>" if at else "") + shown))
    if lead.fix:
        facts.append(("Fix", _e(lead.fix)))
    if price := words.cost(lead, report.coverage.ranks):
        facts.append(("Cost", _e(price)))
    if lead.ranks and len(lead.ranks) < report.coverage.ranks:
        facts.append(("Ranks", _e(", ".join(map(str, lead.ranks)))))
    return "".join(
        [
            f'<article id="{anchor}" class="{lead.severity.value}" aria-labelledby="{anchor}-t">',
            f'<h3 id="{anchor}-t">{_badge(lead.severity.value)} {_e(lead.rule)} ',
            f"<span class=name>{_e(lead.name)}</span></h3>",
            f"<p class=message>{_e(lead.message)}</p>",
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
    place = f"<p class=place><code>{_e(at)}</code></p>"
    line = finding.line or 0
    if source.line_of(finding) is None:
        return place
    lines = []
    for number in range(max(1, line - CONTEXT), line + CONTEXT + 1):
        text = source.line(finding.path, number, finding.cell)
        if text is None:
            continue
        body = _marked(text, finding) if number == line else _line(text)
        here = " class=here" if number == line else ""
        lines.append(f"<span{here}><span class=no>{number:>5}</span>  {body}</span>\n")
    return f"{place}<pre tabindex=0 aria-label='source of {_e(at)}'><code>{''.join(lines)}</code></pre>"


def _marked(text: str, finding: Finding) -> str:
    begin = (finding.column or 0) - 1
    if begin < 0 or begin >= len(text):
        return _line(text)
    same = finding.end_line in (None, finding.line)
    end = (finding.end_column or begin + 2) - 1 if same else len(text)
    end = min(max(end, begin + 1), len(text))
    return f"{_line(text[:begin])}<mark>{_line(text[begin:end])}</mark>{_line(text[end:])}"


def _bars(finding: Finding) -> str:
    """Each measured number in words; a share also as a bar."""
    items = []
    numbers = list(finding.evidence.items())
    for at, said in enumerate(words.evidence(finding)):
        bar = ""
        if at < len(numbers) and is_share(numbers[at][0]):
            filled = min(max(numbers[at][1], 0.0), 1.0) * 100
            bar = f'<span class=bar aria-hidden=true><span style="width:{filled:.2f}%"></span></span>'
        items.append(f"<li>{bar}<span>{_e(said)}</span></li>")
    return f"<ul class=evidence>{''.join(items)}</ul>" if items else ""


def _consequences(story: Story, report: Report) -> str:
    if not story.consequences:
        return ""
    title = "What else this cause did" if story.of_one_cause else "The same elsewhere"
    items = []
    for finding in story.consequences:
        said = "; ".join([*words.evidence(finding), *filter(None, [words.cost(finding, report.coverage.ranks)])])
        items.append(
            f"<li>{_badge(finding.severity.value)} <b>{_e(finding.rule)} {_e(finding.name)}</b> "
            f"<code>{_e(words.place(finding))}</code><br>{_e(finding.message)}"
            + (f"<br><span class=dim>{_e(said)}</span>" if said else "")
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
        f'<li><a href="{_e(url)}" rel="noreferrer">{_e(urlsplit(url).netloc + urlsplit(url).path)}</a></li>'
        for url in rule.references
    )
    return (
        f"<details><summary>Why {_e(rule.id)}, with wrong and right code</summary><p>{_e(reasons or why(rule))}</p>"
        f"<div class=pair><div><h4>Wrong</h4><pre tabindex=0><code>{_code(rule.wrong)}</code></pre></div>"
        f"<div><h4>Right</h4><pre tabindex=0><code>{_code(rule.right)}</code></pre></div></div>"
        f"<p><b>Ignore it when:</b> {_e(rule.ignore_when)}</p><ul class=links>{links}</ul></details>"
    )


def _code(text: str) -> str:
    return "\n".join(_e(line) for line in text.strip("\n").split("\n"))


# ---------------------------------------------------------------------------------------------- not observed


def _unseen(report: Report) -> str:
    cover = report.coverage
    reasons = unseen(rows(report), report)
    parts = []
    if reasons:
        items = (
            f"<dt>{_e(name)}</dt><dd>{_e(reason) or '<span class=dim>did not occur</span>'}</dd>"
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
        parts.append("<ul>" + "".join(f"<li>{_e(line)}</li>" for line in more) + "</ul>")
    title = "Not observed, and how it was looked at" if reasons else "How it was looked at"
    return _section("not-observed", title, parts) if parts else ""


PAGE = Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>$title</title>
<style>$style</style>
</head>
<body>
<a class="skip" href="#main">Skip to the report</a>
<header class="$worst">
<p class="tool">precaudit</p>
<h1>$verdict</h1>
<ul class="setup">$opening</ul>
<nav aria-label="Sections">$links</nav>
</header>
<main id="main">
$body
</main>
<footer>$closing</footer>
</body>
</html>
""")

STYLE = """
:root{--bg:#fff;--fg:#1b1f24;--dim:#59636e;--line:#d5dae0;--soft:#f5f7f9;--link:#0a58ca;
--error:#b42318;--warning:#8a5300;--note:#175cd3;--ok:#136c34;--bar:#dfe4ea;--mark:#ffe08a;--marktext:#1b1f24}
@media (prefers-color-scheme:dark){:root{--bg:#12161b;--fg:#e4e8ec;--dim:#9aa4af;--line:#323a43;--soft:#1a2027;
--link:#7db3ff;--error:#ff8b80;--warning:#f5b84c;--note:#84b6ff;--ok:#6fd08c;--bar:#323a43;--mark:#6b5200;--marktext:#fff}}
*{box-sizing:border-box}
html{scroll-behavior:smooth;scroll-padding-top:1rem}
@media (prefers-reduced-motion:reduce){html{scroll-behavior:auto}}
body{margin:0 auto;max-width:72rem;padding:0 1rem 3rem;background:var(--bg);color:var(--fg);
font:1rem/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;overflow-wrap:anywhere}
a{color:var(--link)}
:focus-visible{outline:3px solid var(--link);outline-offset:2px;border-radius:2px}
.skip{position:absolute;left:-99rem}.skip:focus{left:1rem;top:.5rem;background:var(--bg);padding:.25rem .5rem}
code,pre{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:.875rem}
pre{margin:.5rem 0;padding:.6rem .75rem;background:var(--soft);border:1px solid var(--line);border-radius:6px;
overflow-x:auto;overflow-wrap:normal;tab-size:4}
header{margin:1.5rem 0 1rem;padding:.25rem 0 .75rem 1rem;border-left:6px solid var(--note)}
header.error{border-color:var(--error)}header.warning{border-color:var(--warning)}header.ok{border-color:var(--ok)}
.tool{margin:0;color:var(--dim);font-weight:600}
h1{margin:0 0 .5rem;font-size:1.75rem;line-height:1.2}
h2{margin:2.25rem 0 .75rem;font-size:1.25rem}
h3{margin:0 0 .35rem;font-size:1.05rem}h4{margin:1rem 0 .35rem;font-size:.95rem}
.setup{display:flex;flex-wrap:wrap;gap:.15rem 1rem;margin:0 0 .6rem;padding:0;list-style:none;color:var(--dim)}
nav{display:flex;flex-wrap:wrap;gap:.25rem 1.25rem}
nav a{padding:.35rem 0}
.wide{overflow-x:auto}
table{width:100%;border-collapse:collapse;font-variant-numeric:tabular-nums;overflow-wrap:normal}
th,td{padding:.4rem .75rem .4rem 0;text-align:left;border-bottom:1px solid var(--line);white-space:nowrap}
thead th{color:var(--dim);font-weight:600;font-size:.875rem}
tbody th{font-weight:500}
.n{text-align:right}.none,.dim{color:var(--dim)}
tr.not-observed th,tr.not-observed td{color:var(--dim)}
.badge{display:inline-block;padding:0 .5rem;border:1px solid currentColor;border-radius:1rem;font-size:.8rem;
font-weight:600;line-height:1.5;white-space:nowrap;color:var(--dim)}
.badge.error,.badge.violation{color:var(--error)}.badge.warning{color:var(--warning)}
.badge.note{color:var(--note)}.badge.ok{color:var(--ok)}.badge.not-observed{border-style:dashed}
.index{margin:0 0 1.25rem;padding-left:1.5rem}.index li{margin:.3rem 0}
article{margin:1rem 0;padding:1rem;border:1px solid var(--line);border-left:6px solid var(--note);border-radius:8px}
article.error{border-left-color:var(--error)}article.warning{border-left-color:var(--warning)}
.name{font-weight:500}
.message{margin:.25rem 0 .5rem;font-size:1.05rem}
.place{margin:.5rem 0 0;color:var(--dim)}
.no{color:var(--dim);user-select:none}
pre .here{font-weight:600}
mark{background:var(--mark);color:var(--marktext);border-radius:2px;padding:.1em 0}
.evidence{margin:.75rem 0;padding:0;list-style:none}
.evidence li{display:flex;flex-wrap:wrap;align-items:center;gap:.15rem .75rem;margin:.3rem 0}
.bar{flex:0 0 10rem;height:.7rem;border-radius:.35rem;background:var(--bar);overflow:hidden}
.bar span{display:block;height:100%;min-width:2px;background:var(--warning)}
article.error .bar span{background:var(--error)}
dl{display:grid;grid-template-columns:minmax(5rem,max-content) 1fr;gap:.35rem 1rem;margin:.75rem 0}
dt{color:var(--dim)}dd{margin:0;min-width:0}
.also{margin:0;padding:0;list-style:none}.also li{padding:.5rem 0;border-top:1px solid var(--line)}
details{margin-top:.75rem}summary{cursor:pointer;color:var(--link);padding:.25rem 0}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(24rem,100%),1fr));gap:0 1rem}.pair>div{min-width:0}
.pair h4{margin-top:.25rem}
.links{padding-left:1.25rem;font-size:.9rem}
footer{margin-top:2.5rem;padding-top:.75rem;border-top:1px solid var(--line);color:var(--dim)}
@media (max-width:40rem){article{padding:.75rem}dl{grid-template-columns:1fr;gap:.1rem}dd{margin-bottom:.5rem}
h1{font-size:1.4rem}.bar{flex-basis:100%}}
@media print{details{display:none}article{break-inside:avoid}}
"""
