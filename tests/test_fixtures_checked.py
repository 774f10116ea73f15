"""The static pass reports on each fixture exactly what its lines expect of the source, and nothing on the rest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import harness
import pytest

from precaudit import rulebook

ROOT = harness.FIXTURES.parent
RULES = rulebook.load().rules
RECORD: Mapping[str, str] = {}
"""Known misses and false alarms. An entry fails as soon as the pass does better, so that it is taken out."""


def name(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def scripts() -> list[object]:
    found = []
    for path in sorted(harness.FIXTURES.glob("*/*.py")):
        why = RECORD.get(name(path))
        marks = [pytest.mark.xfail(strict=True, reason=why)] if why else []
        found.append(pytest.param(path, id=name(path), marks=marks))
    return found


@cache
def report() -> Mapping[str, list[dict[str, object]]]:
    """The errors and warnings of one `precaudit check fixtures`, by script, and a rule's own notes on its bad ones."""
    search = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "precaudit", "check", "--output-format", "json", "--no-cache", "fixtures"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": search},
        capture_output=True,
        text=True,
        timeout=120,
    )
    found: dict[str, list[dict[str, object]]] = {}
    for finding in json.loads(done.stdout)["findings"]:
        path = Path(finding["path"])
        own = finding["rule"] == path.parent.name and path.stem.startswith("bad")
        if (finding["severity"] != "note" or own) and not finding["suppressed"]:
            found.setdefault(name(path), []).append(finding)
    return found


def expected(path: Path) -> dict[str, set[int]]:
    """Rule id -> the lines of this script where the source breaks it."""
    marked = harness.expected(path, "check")
    return {rule: lines for rule, lines in marked.items() if "check" in RULES[rule].seen_by}


@pytest.mark.parametrize("path", scripts())
def test_source_of_a_fixture_reports_exactly_its_rules_near_their_lines(path: Path) -> None:
    wanted, found = expected(path), report().get(name(path), [])
    assert {finding["rule"] for finding in found} == set(wanted), [
        f"{f['rule']} {f['line']} {f['message']}" for f in found
    ]
    for finding in found:
        lines = wanted[str(finding["rule"])]
        assert any(abs(int(str(finding["line"])) - at) <= harness.NEAR for at in lines), (
            f"{finding['rule']} at {finding['line']}"
        )


def test_every_rule_of_the_source_has_a_wrong_script_a_mended_one_and_two_traps() -> None:
    for rule in (r for r in RULES if "check" in RULES[r].seen_by and not r.startswith("PA0")):
        folder = harness.FIXTURES / rule
        kinds = [len(list(folder.glob(pattern))) for pattern in ("bad*.py", "good*.py", "trap_*.py")]
        assert all(have >= want for have, want in zip(kinds, (1, 1, 2), strict=True)), f"{rule}: {kinds}"
