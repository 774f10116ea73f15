"""Small programs of one or several files, with the rules that they break, or nothing.

`programs/*.txt` holds them: `=== name: PA101 PA301` begins one, `--- path` a file of it. `values`: where a dtype comes
from, a dataclass, a command line, a config file, another package. `paths`: what cannot happen, and what is no training.
`numerics`: sums, statistics, targets, positions, counters. `projects`: the same mistakes as larger programs make them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from precaudit import rulebook
from precaudit.judge import judge
from precaudit.model.vocabulary import fact_from_json
from precaudit.model.wire import Severity
from precaudit.static.files.cache import Cache
from precaudit.static.files.discovery import Excluder, discover
from precaudit.static.files.run import examine_all


def programs() -> Iterator[object]:
    for path in sorted((Path(__file__).parent / "programs").glob("*.txt")):
        for part in re.split(r"(?m)^=== ", path.read_text())[1:]:
            head, body = part.split("\n", 1)
            name, rules = head.split(": ")
            _, *pieces = re.split(r"(?m)^--- (.*)\n", body)
            files = dict(zip(pieces[::2], pieces[1::2], strict=True))
            yield pytest.param(files, set(rules.split()) - {"nothing"}, id=f"{path.stem}/{name}")


@pytest.mark.parametrize(("files", "rules"), list(programs()))
def test_a_program_is_reported_for_what_it_breaks(files: dict[str, str], rules: set[str], tmp_path: Path) -> None:
    for name, text in {"pyproject.toml": "", **files}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = discover([str(tmp_path)], Excluder(tmp_path, (), False)).found
    results = examine_all(found, Cache(None), jobs=1)
    facts = [fact_from_json(raw) for _, result in results for raw in result.get("facts", ())]
    findings = [f for f in judge(facts, rulebook.load(), "check") if f.severity is not Severity.NOTE]
    assert {finding.rule for finding in findings} == rules
