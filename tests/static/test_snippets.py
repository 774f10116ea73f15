"""Each snippet names the rules it expects on the offending line; nothing else may be reported."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from precaudit import rulebook
from precaudit.judge import judge
from precaudit.model.wire import Severity
from precaudit.static.analyze import analyze
from precaudit.static.source import load

SNIPPETS = sorted((Path(__file__).parent / "snippets").glob("*.py"))


def expected(text: str) -> set[tuple[int, str]]:
    found = set()
    for number, line in enumerate(text.splitlines(), 1):
        match = re.search(r"# expect: ([PA0-9, ]+)", line)
        for rule in re.findall(r"PA\d{3}", match[1]) if match else ():
            found.add((number, rule))
    return found


@pytest.mark.parametrize("path", SNIPPETS, ids=lambda p: p.stem)
def test_exactly_the_marked_lines_are_reported(path: Path) -> None:
    facts, _ = analyze(load(path, path.name))
    findings = [f for f in judge(facts, rulebook.load(), "check") if f.severity is not Severity.NOTE]
    assert {(f.line, f.rule) for f in findings} == expected(path.read_text())
