"""Strings from outside, in every field and every format: nothing that a terminal, a browser or a runner would obey."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from precaudit.model.wire import Report
from precaudit.report import FORMATS, render
from tests.report import samples

HOSTILE = {
    "ansi": "\x1b[31mred\x1b]0;title\x07",
    "c1": "\x9b31m\x85next",
    "bidi": "\u202eesrever\u2066x\u2069\u200f",
    "lines": "one\ntwo\rthree\u2028four",
    "command": "::error file=x::forged",
    "command on a line": "x\n::error file=x::forged\n  ::set-output name=a::b",
    "old command": "##[error]forged",
    "html": "</script><img src=x onerror=alert(1)>\"'&lt;",
    "markdown": "[link](http://evil) ![i](http://evil) `code` **b** | cell | @everyone #1 <b>",
    "surrogate": "\udcff",
    "null": "\0",
}
FORBIDDEN = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
PEOPLE = ("text", "concise", "agent", "github", "md", "html", "junit", "flat")


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where a report as JSON holds a string that anybody may have written."""
    if isinstance(value, str):
        yield at
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*at, key))
    elif isinstance(value, list) and value:
        yield from places(value[0], (*at, 0))


FIXED = {"severity", "standing", "status", "command", "format_version", "verdict", "facts"}
RAW = samples.trace().model_dump(mode="json") | {
    "run": {
        "id": "1", "argv": ["python"], "cwd": "/", "started": "2026-01-01T00:00:00Z", "duration_s": 1.0, "host": "h",
        "python": "3", "versions": {"torch": "2"}, "commit": "abc",
    },
}  # fmt: skip
PLACES = [at for at in places(RAW) if not FIXED & set(at)]


def forged(at: tuple[Any, ...], text: str) -> Report:
    raw = json.loads(json.dumps(RAW))
    inner = raw
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = text
    return Report.model_validate(raw)


def without_code(text: str) -> str:
    """Markdown without what stands in code: there it is shown as it is."""
    return re.sub(r"(`{1,})(?!`).*?(?<!`)\1(?!`)", "", text, flags=re.DOTALL)


@pytest.mark.parametrize("fmt", PEOPLE)
@pytest.mark.parametrize("kind", HOSTILE)
def test_no_field_of_a_report_is_obeyed(kind: str, fmt: str, tmp_path: Path) -> None:
    samples.write_sources(tmp_path)
    for at in PLACES:
        wanted = render(forged(at, "x"), "github", root=tmp_path, verbosity=1) if fmt == "github" else ""
        shown = render(forged(at, HOSTILE[kind]), fmt, root=tmp_path, verbosity=1)
        assert not FORBIDDEN.search(shown), (at, shown)
        own = len(re.findall(r"(?m)^\s*::|##\[", shown))
        assert own == len(re.findall(r"(?m)^::", wanted)), (at, shown)
        if fmt == "html":
            assert "<img" not in shown, at
            assert shown.count("</script>") == render(Report.model_validate(RAW), fmt, root=tmp_path).count("</script>")
        if fmt == "md":
            bare = without_code(shown)
            assert not re.search(r"<img|<b>|</script|(?<!\\)\]\(|(?<!\\)@everyone", bare), (at, shown)
        if fmt == "junit":
            ElementTree.fromstring(shown)


@pytest.mark.parametrize("kind", HOSTILE)
def test_formats_for_programs_say_every_string_as_it_is(kind: str, tmp_path: Path) -> None:
    for at in PLACES:
        report = forged(at, HOSTILE[kind])
        for fmt in sorted(set(FORMATS) - set(PEOPLE)):
            shown = render(report, fmt, root=tmp_path)
            for line in shown.rstrip("\n").split("\n") if fmt == "jsonl" else [shown]:
                json.loads(line, strict=True)
