"""The report for people at a terminal: the role table and the stories of a trace, the excerpts of a check."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from precaudit import rulebook
from precaudit.errors import RuleError
from precaudit.model.exact import ExactStep
from precaudit.model.wire import Finding, Line, Report, Rule, Severity
from precaudit.report import View, what_if, words
from precaudit.report import exact as exact_words
from precaudit.report import render as shown_as
from precaudit.report.evidence import share as share_of
from precaudit.report.headline import headline
from precaudit.report.roles import Row, allowed, columns, rows, unlisted, unseen
from precaudit.report.rulepage import grades
from precaudit.report.source import Source
from precaudit.report.stories import Story, stories
from precaudit.rulebook import Rulebook

STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "bold yellow", Severity.NOTE: "bold cyan"}
DIM, STRONG, PLACE, GOOD = "bright_black", "bold", "cyan", "green"
TAB = "    "
WORD = re.compile(r"\S*\s+|\S+$")
SOFT = re.compile(r"[/._,(\[=:-]+")
LONGEST_EXCERPT = 4
"""Lines that one folded source line may take; of a longer one the part around the caret is shown."""


def as_rich(report: Report) -> Text:
    """The same text in colour, for a rich console."""
    return Text.from_ansi(shown_as(report, "text", color=True, show_again=""))


def render(report: Report, view: View) -> str:
    """The report as text: for a trace its headline, roles and stories, excerpts for a check, worst first."""
    page = Page(view.color, view.width)
    source = Source(view.root)
    shown = words.loud(report, view.verbosity)
    static = report.command == "check"
    worst = shown[0].severity if shown else None
    brief = report.status == "clean" and worst is None and view.verbosity == 0
    style = GOOD if report.status == "clean" and worst is None else STYLES.get(worst, STRONG) if worst else STRONG
    if view.verbosity >= 0 and not static:
        table = rows(report)
        page.fold([headline(report, table)], 2, style)
        page.flow(words.opening(report), DIM, DIM)
        page.gap()
        _roles(page, report, table, brief, view.verbosity)
    for story in stories(shown, by_rule=not static):
        if view.verbosity < 0:
            for finding in (story.lead, *story.consequences):
                page.fold([words.MARKS[finding.severity], " ", *_brief(finding)], 2, STYLES[finding.severity])
        elif static:
            _excerpt_story(page, story, source, report, view)
        else:
            _trace_story(page, story, source, report, view)
    _allowed(page, words.allowed(report))
    if view.verbosity >= 0 and report.exact is not None:
        _exact(page, report, report.exact, view.verbosity)
    if view.verbosity >= 0:
        _coverage(page, report, view, brief)
    closing = words.closing(report, view.verbosity, view.show_again)
    # Of a trace where nothing is wrong the first line has said so.
    page.flow(closing[1:] if brief and not static and len(closing) > 1 else closing, style)
    return page.text()


def _allowed(page: Page, findings: Sequence[Finding]) -> None:
    """What the contract allows, a line for each, with the reason."""
    for finding in findings:
        at = words.place(finding)
        mark = f"{words.MARKS[Severity.NOTE]} {finding.rule} "
        page.fold([(mark, DIM), (f"{at} " if at else "", PLACE), words.excuse(finding)], 4)
    if findings:
        page.gap()


class Page:
    """Lines of a fixed width, folded and never truncated; no text from outside is ever read as markup."""

    def __init__(self, color: bool, width: int) -> None:
        self.width = width
        self._out = io.StringIO()
        self._console = Console(
            file=self._out,
            width=100_000,
            force_jupyter=False,  # there rich would show it at once, beside the file
            force_terminal=color,
            color_system="standard" if color else None,
            no_color=not color,
            markup=False,
            emoji=False,
            highlight=False,
            legacy_windows=False,
        )

    def text(self) -> str:
        lines = (line.rstrip() for line in self._out.getvalue().split("\n"))
        return "\n".join(lines).rstrip("\n") + "\n"

    def gap(self) -> None:
        self._out.write("\n")

    def put(self, text: Text) -> None:
        self._console.print(text, no_wrap=True, overflow="ignore", crop=False)

    def fold(self, parts: Sequence[str | tuple[str, str]], indent: int, first: str = "", start: int = 0) -> None:
        """Parts as one paragraph that begins at column `start` and goes on at column `indent`.

        The first part takes the style `first`; others are plain or bring their own.
        """
        styled = Text()
        for number, part in enumerate(parts):
            text, style = (part, first if number == 0 else "") if isinstance(part, str) else part
            styled.append(words.visible(text), style)
        room = self.width - indent
        begin = Text(" " * start)
        head_room = self.width - start
        pieces = _wrap(styled, head_room, room)
        for number, piece in enumerate(pieces):
            self.put((begin if number == 0 else Text(" " * indent)) + piece)

    def flow(self, parts: Sequence[str], first: str = "", rest: str = "") -> None:
        """Parts set apart by a dot; a line ends between two parts wherever each fits on a line."""
        line: list[tuple[str, str]] = []
        used = 0
        for number, part in enumerate(parts):
            piece = words.visible(part) + (" ·" if number < len(parts) - 1 else "")
            if line and used + 1 + cell_len(piece) > self.width:
                self.fold(line, 0)
                line, used = [], 0
            line.append(((" " if line else "") + piece, rest if number else first))
            used += cell_len(line[-1][0])
        self.fold(line, 0)

    def field(self, name: str, body: Sequence[str | tuple[str, str]], indent: int = 4, column: int = 11) -> None:
        """A named field: `    fix        load in float32 …`, folded under its own column."""
        label = name.ljust(column)
        self.fold([(" " * indent + label, DIM), *body], indent + column)


def _wrap(text: Text, first: int, rest: int) -> list[Text]:
    """Folds after spaces; a word longer than a line after its own punctuation, or anywhere; cuts nothing off."""
    plain = text.plain
    may = _opportunities(plain, rest)
    breaks: list[int] = []
    start, room, used, last = 0, first, 0, 0
    index = 0
    while index < len(plain):
        used += cell_len(plain[index])
        if used > room and plain[index] != " ":
            end = last if last > start else max(index, start + 1)
            breaks.append(end)
            start, room, used, last, index = end, rest, 0, end, end
            continue
        index += 1
        if index in may:
            last = index
    pieces = list(text.divide(breaks)) if breaks else [text]
    for piece in pieces:
        piece.rstrip()
    return pieces


def _opportunities(plain: str, room: int) -> set[int]:
    """Where a line may end: after every space, and after punctuation inside words that no line can hold."""
    may: set[int] = set()
    for word in WORD.finditer(plain):
        if plain[word.end() : word.end() + 1] != "%":
            may.add(word.end())
        if cell_len(word.group()) > room:
            may |= {word.start() + soft.end() for soft in SOFT.finditer(word.group())}
    return may


# ---------------------------------------------------------------------------------------------- role table


def _roles(page: Page, report: Report, table: list[Row], brief: bool, verbosity: int) -> None:
    """The roles that were seen, and one line for the others; `brief` names them by dtype, in a line each."""
    seen = [row for row in table if row.tensors]
    dtypes = columns(seen)
    held = [dtype for dtype in dtypes if any(dtype in row.tensors for row in seen)]
    memory = words.memory(report)
    layouts = [["wanted", *dtypes, memory], ["wanted", *held, memory], [*held, memory], held]
    if seen and brief:
        _by_dtype(page, seen, held)
    elif seen and not any(_wide_table(page, seen, layout) for layout in layouts):
        _narrow_table(page, seen)
    others = [row.label for row in table if not row.tensors] if verbosity <= 0 else []
    if others:
        _not_seen(page, others)
    for what, why in allowed(seen).items():
        page.fold([("  allowed   ", DIM), f"{what}, because {why}"], 12)
    if (seen or others) and not brief:
        page.gap()


def _not_seen(page: Page, names: list[str]) -> None:
    """As many of the names as one line holds, and how many more there are."""
    end = " (-v says what they need)"
    for count in range(len(names), 0, -1):
        left = len(names) - count
        text = ", ".join(names[:count]) + (f" and {left} more" if left else "")
        if count == 1 or 12 + cell_len(words.visible(text)) + len(end) <= page.width:
            page.fold([("  not seen  ", DIM), text, (end, DIM)], 12)
            return


def _by_dtype(page: Page, seen: list[Row], held: list[str]) -> None:
    """`float32  29 master weights, 58 optimizer state`: what there is to say where nothing is wrong."""
    column = min(max(cell_len(words.visible(dtype)) for dtype in [*held, "not seen"]) + 4, page.width // 2)
    for dtype in held:
        roles = ", ".join(f"{row.label} ({row.tensors[dtype]:,})" for row in seen if dtype in row.tensors)
        page.fold([(f"  {dtype}".ljust(column), DIM), roles], column)


def _wide_table(page: Page, table: list[Row], middle: list[str]) -> bool:
    """Prints one column per heading and says True; says False and prints nothing where the width does not allow it."""
    head = ["role", *middle, "verdict"]
    body = [[row.label, *(_cell(row, heading) for heading in middle), _verdict(row)] for row in table]
    widths = [max(cell_len(line[i]) for line in [head, *body]) for i in range(len(head))]
    if 2 + sum(widths) + 2 * (len(widths) - 1) > page.width:
        return False
    left = {0, len(head) - 1, *(i for i, heading in enumerate(head) if heading == "wanted")}
    page.put(Text("  " + _row(head, widths, left), DIM))
    for row, line in zip(table, body, strict=True):
        text = Text("  " + _row([*line[:-1], ""], widths, left))
        text.append(line[-1], _verdict_style(row))
        page.put(text)
    return True


def _cell(row: Row, heading: str) -> str:
    if heading == "wanted":
        return row.wanted
    if heading in ("memory", "memory/rank", "size"):
        return words.size(row.bytes) if row.bytes else "-"
    return f"{row.tensors[heading]:,}" if heading in row.tensors else "-"


def _row(cells: list[str], widths: list[int], left: set[int]) -> str:
    padded = []
    for index, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        space = " " * (width - cell_len(cell))
        padded.append(cell if index == len(cells) - 1 else cell + space if index in left else space + cell)
    return "  ".join(padded)


def _narrow_table(page: Page, table: list[Row]) -> None:
    """One role per line, with the dtypes named: for terminals that cannot hold a column per dtype."""
    label = min(max(cell_len(words.visible(row.label)) for row in table), page.width // 2)
    verdict = max(cell_len(_verdict(row)) for row in table)
    indent = label + verdict + 6
    indent = indent if indent <= page.width - 12 else 4
    for row in table:
        held = ", ".join(f"{count:,} {dtype}" for dtype, count in row.tensors.items())
        name = words.visible(row.label)
        head = "  " + name + " " * (label - cell_len(name)) + "  "
        page.fold([(head, ""), (_verdict(row).ljust(verdict) + "  ", _verdict_style(row)), held], indent)


def _verdict(row: Row) -> str:
    if row.verdict != "violation":
        return row.verdict.replace("-", " ")
    return " ".join([words.MARKS[row.worst or Severity.ERROR], *(row.rules or ["not selected"])])


def _verdict_style(row: Row) -> str:
    if row.verdict == "violation":
        return STYLES[row.worst or Severity.ERROR]
    return GOOD if row.verdict == "ok" else DIM if row.verdict == "not-observed" else ""


# ---------------------------------------------------------------------------------------------- a trace's stories


def _trace_story(page: Page, story: Story, source: Source, report: Report, view: View) -> None:
    lead = story.lead
    _headline(page, lead)
    _where(page, lead, source)
    if lead.library:
        page.field("inside", [lead.library])
    if lead.module:
        page.field("module", [lead.module])
    if measured := words.evidence(lead):
        page.field("evidence", ["; ".join(measured)])
    if lead.cause:
        _cause(page, lead, lead.cause, source, "    cause      ")
    if lead.ranks and len(lead.ranks) < report.coverage.ranks:
        page.field("ranks", [", ".join(map(str, lead.ranks))])
    if lead.fix:
        page.field("fix", [lead.fix])
    more = f"more: precaudit rules {lead.rule}"
    if price := words.cost(lead, report.coverage.ranks):
        page.field("cost", [price, "      ", (more, DIM)])
    else:
        page.field("more", [f"precaudit rules {lead.rule}"])
    if story.consequences:
        also = "consequences of the same cause" if story.of_one_cause else "also"
        page.fold([(f"    {also}", DIM)], 4)
        for finding in story.consequences:
            _consequence(page, finding, lead, report.coverage.ranks, "      ", view.verbosity)
    page.gap()


def _headline(page: Page, finding: Finding) -> None:
    style = STYLES[finding.severity]
    head = f"{words.MARKS[finding.severity]} {finding.rule} {finding.name}"
    message = words.visible(finding.message)
    if cell_len(head) + 3 + cell_len(message) <= page.width:
        page.fold([head, "   ", (message, STRONG)], 4, style)
    else:
        page.fold([head], 2, style)
        page.fold([(message, STRONG)], 4, start=4)


def _where(page: Page, finding: Finding, source: Source) -> None:
    at = words.place(finding)
    if not at:
        page.fold([("source line not known", DIM)], 4, start=4)
        return
    text = source.line_of(finding)
    if text is None:
        page.fold([(at, PLACE)], 4, start=4)
        return
    code, column, length = _code(text, finding)
    if 4 + len(at) + 3 + cell_len(code) <= page.width:
        page.put(Text("    ") + Text(at, PLACE) + Text("   " + code))
        if length:
            page.put(Text(" " * (4 + len(at) + 3 + column) + "^" * length, STYLES[finding.severity]))
    else:
        page.fold([(at, PLACE)], 4, start=4)
        _segments(page, code, column, length, "      ", STYLES[finding.severity])


def _segments(page: Page, code: str, column: int, length: int, gutter: str, style: str, first: str = "") -> None:
    """A source line, broken where it is too long, each piece with its own part of the caret.

    `first` is the gutter of the first piece, where it differs. Of a very long line the part around the caret is shown.
    """
    room = max(page.width - len(gutter) - 2, 16)
    pieces = _pieces(code, room)
    before = 0
    offsets = [before := before + cell_len(piece) for piece in pieces]
    offsets = [0, *offsets[:-1]]
    here = next((i for i in reversed(range(len(pieces))) if offsets[i] <= column), 0)
    begin = 0 if len(pieces) <= LONGEST_EXCERPT else max(0, min(here - 1, len(pieces) - LONGEST_EXCERPT))
    end = min(begin + LONGEST_EXCERPT, len(pieces))
    for number in range(begin, end):
        piece, offset = pieces[number], offsets[number]
        more = "…" if number == end - 1 and end < len(pieces) else ""
        less = "…" if number == begin > 0 else ""
        page.put(Text.assemble((first if number == begin and first else gutter, DIM), less + piece + more))
        left, right = max(column - offset, 0), min(column + length - offset, cell_len(piece))
        if length and right > left:
            page.put(Text.assemble((gutter, DIM), (" " * (left + len(less)) + "^" * (right - left), style)))


def _pieces(code: str, room: int) -> list[str]:
    pieces, start = [], 0
    while start < len(code):
        end, used = start, 0
        while end < len(code) and used + cell_len(code[end]) <= room:
            used += cell_len(code[end])
            end += 1
        end = max(end, start + 1)
        if end < len(code):
            soft = max(code.rfind(mark, start + (end - start) * 2 // 3, end) for mark in " ,(=")
            end = soft + 1 if soft > start else end
        pieces.append(code[start:end])
        start = end
    return pieces or [""]


def _code(text: str, finding: Finding) -> tuple[str, int, int]:
    """The source line without its indentation, and where the caret stands in it and how long it is, in cells."""
    raw = text.rstrip()
    body = raw.lstrip()
    cut = len(raw) - len(body)
    shown = words.visible(body.replace("\t", TAB))
    if not finding.column or finding.column - 1 < cut or finding.column > len(raw) + 1:
        return shown, 0, 0
    begin = finding.column - 1
    same_line = finding.end_line in (None, finding.line)
    end = (finding.end_column or 0) - 1 if same_line else len(raw)
    end = min(max(end, begin + 1), len(raw)) if finding.end_column or not same_line else begin + 1
    column = cell_len(words.visible(raw[cut:begin].replace("\t", TAB)))
    return shown, column, max(cell_len(words.visible(raw[begin:end].replace("\t", TAB))), 1)


def _cause(page: Page, finding: Finding, cause: Line, source: Source, label: str) -> None:
    """What made it so, and the line that did: on the same line where both fit."""
    if (cause.path, cause.cell, cause.line) == (finding.path, finding.cell, finding.line):
        page.fold([(label, DIM), cause.text, ", on this line"], len(label))
        return
    at = words.place(cause)
    code = (source.line_of(cause) or "").strip()
    said: list[str | tuple[str, str]] = [(label, DIM), cause.text]
    if at:
        said += [": ", (at, PLACE)]
    whole = cell_len(label) + cell_len(words.visible(f"{cause.text}: {at}   {code}"))
    if not code or whole <= page.width:
        page.fold([*said, f"   {code}" if code else ""], len(label))
        return
    page.fold(said, len(label))
    _segments(page, words.visible(code), 0, 0, " " * len(label), "")


def _consequence(page: Page, finding: Finding, lead: Finding, ranks: int, label: str, verbosity: int) -> None:
    """One shorter paragraph: what else the same cause did; the place only where it is another one."""
    at = words.place(finding)
    head = f"{words.MARKS[finding.severity]} {finding.rule} {finding.name}{words.mark(finding)}"
    body = [finding.message, *words.evidence(finding), words.cost(finding, ranks)]
    parts: list[str | tuple[str, str]] = [(label, DIM), (head, STYLES[finding.severity])]
    if at and at != words.place(lead):
        parts += ["  ", (at, PLACE)]
    page.fold([*parts, "  ", "; ".join(clause for clause in body if clause)], len(label) + 2)
    if verbosity > 0 and finding.fix:
        page.fold([("fix  ", DIM), finding.fix], len(label) + 7, start=len(label) + 2)


# ---------------------------------------------------------------------------------------------- a check's excerpts


def _excerpt_story(page: Page, story: Story, source: Source, report: Report, view: View) -> None:
    lead = story.lead
    style = STYLES[lead.severity]
    page.fold(
        [
            f"{lead.rule} {lead.severity.value}{words.mark(lead)}",
            ": ",
            (lead.message, STRONG),
            (f" [{lead.name}]", DIM),
        ],
        4,
        style,
    )
    number = str(lead.line or "")
    gutter = " " * len(number)
    if at := words.place(lead):
        page.fold([(f"{gutter}--> ", DIM), (at, PLACE)], len(gutter) + 4)
        text = source.line_of(lead)
        if text is not None:
            code, column, length = _code(text, lead)
            page.put(Text(f"{gutter} |", DIM))
            _numbered(page, number, code, column, length, style)
            page.put(Text(f"{gutter} |", DIM))
    indent = len(gutter) + 10
    if lead.cause and lead.cause.text:
        _cause(page, lead, lead.cause, source, f"{gutter} = cause: ")
    if measured := words.evidence(lead):
        page.fold([(f"{gutter} = seen:  ", DIM), "; ".join(measured)], indent)
    if reason := why(lead):
        page.fold([(f"{gutter} = why:   ", DIM), reason], indent)
    if lead.fix:
        page.fold([(f"{gutter} = fix:   ", DIM), lead.fix], indent)
    for finding in story.consequences:
        _consequence(page, finding, lead, report.coverage.ranks, f"{gutter} = so:    ", view.verbosity)
    page.gap()


def _numbered(page: Page, number: str, code: str, column: int, length: int, style: str) -> None:
    room = page.width - len(number) - 3
    if cell_len(code) <= room:
        page.put(Text.assemble((f"{number} | ", DIM), code))
        if length:
            page.put(Text.assemble((" " * len(number) + " | ", DIM), (" " * column + "^" * length, style)))
        return
    _segments(page, code, column, length, " " * len(number) + " | ", style, f"{number} | ")


def why(finding: Finding) -> str:
    """The reasons in short, for this case where the rule knows it; empty for a rule that this version does not know."""
    if finding.why:
        return words.opening_sentences(finding.why)
    try:
        return words.opening_sentences(rulebook.load().find(finding.rule).why)
    except RuleError:
        return ""


def _brief(finding: Finding) -> list[str | tuple[str, str]]:
    at = words.place(finding)
    brief: list[str | tuple[str, str]] = [(at, PLACE), " "] if at else []
    return [*brief, (finding.rule, STYLES[finding.severity]), " ", finding.message]


# ---------------------------------------------------------------------------------------------- the exact step


def _exact(page: Page, report: Report, exact: ExactStep, verbosity: int) -> None:
    """What the step should have given, the updates and the operations that lost most: ten of each, more with -v."""
    most = exact_words.MOST if verbosity <= 0 else None
    page.fold([("exact step  ", STRONG), exact_words.heading(exact, report.coverage.ranks)], 12)
    for label, said in exact_words.budget(exact):
        page.fold([("  " + label.ljust(18), DIM), said], 20)
    updates = exact_words.worst_updates(exact)
    for line in updates[:most] if len(updates) > 1 else ():
        page.fold([("  update of         ", DIM), exact_words.update(line)], 20)
    for row in exact.operations[:most]:
        page.fold(
            [("  lost at           ", DIM), (exact_words.place(row), PLACE), "  ", exact_words.operation(row)], 20
        )
    if exact.what_if is not None:
        page.fold([("what if     ", STRONG), what_if.heading(exact.what_if, exact.step)], 12)
        for label, said in what_if.lines(exact.what_if, verbosity > 0):
            page.fold([("  " + label.ljust(18), DIM), said], 20)
    page.gap()


# ---------------------------------------------------------------------------------------------- what was not seen


def _coverage(page: Page, report: Report, view: View, brief: bool) -> None:
    cover = report.coverage
    said = False
    table = rows(report)
    reasons = unseen(table, report) if view.verbosity > 0 else unlisted(report)
    if reasons:
        page.fold([("not looked at", STRONG)], 2)
        column = min(max(map(cell_len, reasons)) + 2, max(page.width // 3, 16))
        for name, reason in reasons.items():
            page.fold([f"  {name}".ljust(column + 2), reason], column + 2)
        said = True
    if cover.unattributed_ops > 0 and view.verbosity > 0:  # mostly the data's: no news on the first screen
        part = share_of(cover.unattributed_ops)
        page.fold([("not judged  ", STRONG), f"{part} of the operations: neither weights, loss, norm nor matmul"], 4)
        said = True
    if cover.skipped:
        page.fold([(f"{words.plural(len(cover.skipped), 'path')} skipped", STRONG)], 2)
        for path in cover.skipped if view.verbosity > 0 else cover.skipped[:5]:
            page.fold([f"  {path}"], 4)
        if len(cover.skipped) > 5 and view.verbosity <= 0:
            page.fold([(f"  and {len(cover.skipped) - 5} more (-v lists them)", DIM)], 4)
        said = True
    for note in cover.notes:
        page.fold([("note  ", STRONG), note], 6)
        said = True
    if ran := words.compiled(report):
        page.fold([("compiled  ", STRONG), ran], 10)
        said = True
    if measured := words.overhead(report):
        page.fold([("overhead  ", STRONG), "; ".join(measured)], 10)
        said = True
    if said and not brief:
        page.gap()


# ---------------------------------------------------------------------------------------------- rules


def rule_table(book: Rulebook, *, color: bool, width: int) -> str:
    """Every rule in one line: id, severity, who sees it, name and title."""
    page = Page(color, width)
    rules = list(book.rules.values())
    name = max(len(rule.name) for rule in rules)
    seen = {rule.id: " ".join(rule.seen_by) for rule in rules}
    by = max(map(len, seen.values()))
    level = {rule.id: ", ".join(grades(rule)) for rule in rules}
    column = max(map(len, level.values()))
    for rule in rules:
        head: list[str | tuple[str, str]] = [
            (rule.id, STRONG),
            "  ",
            (level[rule.id].ljust(column), STYLES[rule.severity]),
            "  ",
        ]
        if width >= 110:
            page.fold([*head, seen[rule.id].ljust(by), "  ", rule.name.ljust(name), "  ", (rule.title, "")], 9 + column)
        else:
            page.fold([*head, rule.name.ljust(name)], 9 + column)
            page.fold([(rule.title, DIM)], 9 + column, start=9 + column)
    page.gap()
    page.fold(
        [f"{words.plural(len(rules), 'rule')} · one page each: precaudit rules {rules[0].id if rules else 'PA301'}"], 0
    )
    return page.text()


def rule_page(rule: Rule, *, color: bool, width: int) -> str:
    """One rule: what, why with its numbers, wrong and right code, when to ignore it, the fix, references."""
    page = Page(color, width)
    page.fold(
        [
            f"{rule.id} {rule.name}",
            " · ",
            (", ".join(grades(rule)), STYLES[rule.severity]),
            " · ",
            " ".join(rule.seen_by),
        ],
        4,
        STRONG,
    )
    page.fold([(rule.title, STRONG)], 0)
    page.gap()
    page.fold([" ".join(rule.why.split())], 0)
    for name, code in (("wrong", rule.wrong), ("right", rule.right)):
        page.gap()
        page.fold([(name, STYLES[Severity.ERROR] if name == "wrong" else GOOD)], 0)
        for line in code.strip("\n").split("\n"):
            _segments(page, words.visible(line), 0, 0, "    ", "")
    page.gap()
    page.fold([("fix", STRONG)], 0)
    page.fold([rule.fix], 4, start=4)
    for framework, fix in rule.fixes.items():
        page.fold([(f"{framework}: ", DIM), fix], 8, start=4)
    page.gap()
    page.fold([("ignore when", STRONG)], 0)
    page.fold([rule.ignore_when], 4, start=4)
    page.fold([(f"# precaudit: ignore[{rule.id}] - the reason", DIM)], 4, start=4)
    if rule.references:
        page.gap()
        page.fold([("references", STRONG)], 0)
        for url in rule.references:
            page.fold([(url, PLACE)], 4, start=4)
    return page.text()
