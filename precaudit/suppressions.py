"""Reads ignore comments: which rules they silence, on which statements; standard library only, for both witnesses."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

COMMENT = re.compile(
    r"precaudit\s*:\s*(?P<whole>ignore-file|ignore)\s*(?:\[(?P<rules>[^\]]*)\])?|\bnoqa\s*:\s*(?P<noqa>PA\d{3}(?:[\s,]+[A-Z]+\d+)*)",
    re.IGNORECASE,
)


@dataclass(slots=True)
class Suppression:
    """One ignore comment: the rules it names (ids or names), and the lines of the statement it belongs to."""

    line: int
    column: int
    first: int
    last: int
    rules: tuple[str, ...]
    whole_file: bool
    used: set[str] = field(default_factory=set)
    foreign: bool = False
    """`noqa`, which other tools read too: it is never called unused."""

    def covers(self, line: int) -> bool:
        return self.whole_file or self.first <= line <= self.last


def read(text: str) -> list[Suppression]:
    """The ignore comments of a Python text; what cannot be tokenized has none."""
    lowered = text.lower()
    if ("precaudit" not in lowered and "noqa" not in lowered) or COMMENT.search(text) is None:
        return []
    comments, spans = _tokens(text)
    found = [(line, column, match) for line, column, comment in comments for match in COMMENT.finditer(comment)]
    return [_suppression(line, column + match.start() + 1, match, spans) for line, column, match in found]


def _tokens(text: str) -> tuple[list[tuple[int, int, str]], list[tuple[int, int]]]:
    """(line, column from 0, comment) of each comment, and (first line, last line) of each statement or its header."""
    comments: list[tuple[int, int, str]] = []
    spans: list[tuple[int, int]] = []
    first = 0
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                comments.append((*token.start, token.string))
            elif token.type == tokenize.NEWLINE:
                spans.append((first or token.start[0], token.end[0]))
                first = 0
            elif token.type not in (tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING) and not first:
                first = token.start[0]
    except (tokenize.TokenError, IndentationError, SyntaxError):
        pass
    return comments, spans


def with_ignores(text: str, rules: Mapping[int, Iterable[str]], python: bool) -> tuple[str, int]:
    """The text with the rules of each line silenced there, and at how many places: at the end of the statement.

    A comment that is there stays, and one of ours is given the new rules.
    """
    comments, spans = _tokens(text) if python else ([], [])
    at_end: dict[int, set[str]] = {}
    for line, names in rules.items():
        last = next((last for first, last in spans if first <= line <= last), line)
        at_end.setdefault(last, set()).update(names)
    lines = re.findall(r"[^\r\n]*(?:\r\n|\n|\r)|[^\r\n]+", text)
    ours = {line: column for line, column, comment in comments if COMMENT.search(comment)}
    for last, new in at_end.items():
        body = lines[last - 1].rstrip("\r\n")
        ending = lines[last - 1][len(body) :]
        match = COMMENT.search(body, ours[last]) if last in ours else None
        if match is not None and match["rules"] is not None:
            named = [*re.split(r"[\s,]+", match["rules"].strip()), *sorted(new)]
            body = body[: match.start("rules")] + ", ".join(dict.fromkeys(named)) + body[match.end("rules") :]
        else:
            body = f"{body.rstrip()}  # precaudit: ignore[{', '.join(sorted(new))}]"
        lines[last - 1] = body + ending
    return "".join(lines), len(at_end)


def _suppression(line: int, column: int, match: re.Match[str], spans: Sequence[tuple[int, int]]) -> Suppression:
    named = match["noqa"] or match["rules"] or ""
    rules = tuple(word for word in re.split(r"[\s,]+", named) if word)
    if match["noqa"]:
        rules = tuple(rule for rule in rules if rule.upper().startswith("PA"))
    around = next(((a, b) for a, b in spans if a <= line <= b), None)
    if around is None:
        # A comment on a line of its own belongs to the statement that follows it.
        around = next(((a, b) for a, b in spans if a > line), (line, line))
    whole = (match["whole"] or "").lower() == "ignore-file"
    return Suppression(line, column, around[0], around[1], rules, whole, foreign=bool(match["noqa"]))


def read_config(text: str) -> list[Suppression]:
    """The ignore comments of a YAML text, where each stands for its own line."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        _, sharp, comment = line.partition("#")
        for match in COMMENT.finditer(comment) if sharp else ():
            found.append(_suppression(number, line.index("#") + 1, match, [(number, number)]))
    return found


def silenced(suppressions: Iterable[Suppression], rule: str, name: str, line: int) -> bool:
    """Whether a finding of this rule on this line is silenced; marks the comment as used."""
    hit = False
    for suppression in suppressions:
        if not suppression.covers(line):
            continue
        for word in suppression.rules:
            if word == name or rule.startswith(word.upper()):
                suppression.used.add(word)
                hit = True
    return hit
