"""Small training scripts, each wrong and mended: the wrong one is reported on the marked lines, the mended one not.

`pairs/*.txt` holds them: `=== name` begins a script, a line that ends in `#BUG` is only in the wrong one, one that
ends in `#FIX` only in the mended one, and `# expect: PA301` stands where a finding belongs; without any it is clean.
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
from precaudit.static.files.discovery import Found
from precaudit.static.files.run import examine

NEAR = 3
"""Lines between a finding and its mark."""


def scripts() -> Iterator[object]:
    for path in sorted((Path(__file__).parent / "pairs").glob("*.txt")):
        for part in re.split(r"(?m)^=== ", path.read_text())[1:]:
            name, body = part.split("\n", 1)
            for kind, other in (("BUG", "FIX"), ("FIX", "BUG")):
                if kind == "FIX" and "#FIX" not in body and "#BUG" not in body:
                    continue
                lines = [line for line in body.splitlines() if not line.endswith(f"#{other}")]
                text = "\n".join(re.sub(r"\s*#(?:BUG|FIX)$", "", line) for line in lines) + "\n"
                if kind == "FIX":
                    text = re.sub(r"  # expect: .*", "", text)
                yield pytest.param(text, id=f"{path.stem}/{name}/{kind}")


@pytest.mark.parametrize("text", list(scripts()))
def test_a_script_is_reported_exactly_where_it_is_wrong(text: str) -> None:
    marks = [(n, m[1]) for n, line in enumerate(text.splitlines(), 1) if (m := re.search(r"# expect: (.*)", line))]
    wanted = {(number, rule) for number, rules in marks for rule in re.findall(r"PA\d{3}", rules)}
    result = examine(Found("/nowhere/script.py", "script.py"), text.encode())
    facts = [fact_from_json(raw) for raw in result["facts"]]
    found = [f for f in judge(facts, rulebook.load(), "check") if f.severity is not Severity.NOTE]
    unmarked = [f for f in found if not any(f.rule == r and abs((f.line or 0) - n) <= NEAR for n, r in wanted)]
    missed = [(n, r) for n, r in wanted if not any(f.rule == r and abs((f.line or 0) - n) <= NEAR for f in found)]
    assert not unmarked, [f"{f.rule} {f.line} {f.message}" for f in unmarked]
    assert not missed
