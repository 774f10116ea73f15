"""Every wrong script reports exactly its rules, where they belong; every mended, clean or trap script reports none."""

from __future__ import annotations

from pathlib import Path

import harness
import messages
import pytest

from precaudit import rulebook
from precaudit.model.wire import Severity

RULES = rulebook.load().rules
SHORT = ("--steps", "5")
"""What the longer scripts are run with; the trace looks at steps 2 and 3."""
SHARED = ("char_gpt.py", "digits_cnn.py")
"""Modules that the scripts import; no training happens in them."""


NEEDS_A_FRAMEWORK = {f"PA{n}" for n in (504, 505, 801, 803, 805, 806, 808, 809)}
"""Rules that plain PyTorch in one process cannot break; their scripts are run where the framework is installed."""


SOURCE_ONLY = "# source only"
"""Says of a script that it cannot be run here, whoever reads it; the static pass alone is tried on it."""


def scripts() -> list[Path]:
    """Every script that one process can run; those in `scripts/` and `clean/` belong to no single rule."""
    traced = {rule.id for rule in RULES.values() if "trace" in rule.seen_by} - NEEDS_A_FRAMEWORK
    found = []
    for path in sorted(harness.FIXTURES.glob("*/*.py")):
        folder = path.parent.name
        runs = path.name not in SHARED and SOURCE_ONLY not in path.read_text(encoding="utf-8")
        if runs and (folder in traced or not folder.startswith("PA")):
            found.append(path)
    return found


def name(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def argv(path: Path) -> tuple[str, ...]:
    return SHORT if path.parent.name == "scripts" else ()


WRONG = [path for path in scripts() if harness.expected(path)]
CLEAN = [path for path in scripts() if not harness.expected(path)]


def wanted(path: Path) -> dict[str, set[int]]:
    """The expectations of a script that a trace can fulfil."""
    seen = {r for r, rule in RULES.items() if "trace" in rule.seen_by}
    return {r: lines for r, lines in harness.expected(path).items() if r in seen}


@pytest.mark.parametrize("path", WRONG, ids=name)
def test_wrong_script_reports_exactly_its_rules(path: Path) -> None:
    report = harness.traced(path, argv(path)).report
    own = {f.rule for f in report.findings if f.rule == path.parent.name}
    assert set(harness.loud(report)) | own == set(wanted(path)), [
        f"{f.rule} {f.line} {f.message}" for f in report.findings
    ]
    if path.parent.name.startswith("PA"):
        rows = messages.own([f.model_dump(mode="json") for f in report.findings], "trace", path)
        assert messages.differences(rows, "trace", f"{path.parent.name}/{path.name}") == [], "python tests/messages.py"


@pytest.mark.parametrize("path", WRONG, ids=name)
def test_findings_stand_within_three_lines_of_the_mistake(path: Path) -> None:
    report = harness.traced(path, argv(path)).report
    for rule, lines in wanted(path).items():
        for where, line in harness.loud(report).get(rule, set()):
            assert Path(where).name == path.name, f"{rule} points into {where}"
            assert any(abs(line - at) <= harness.NEAR for at in lines), f"{rule} at line {line}, expected at {lines}"


@pytest.mark.parametrize("path", CLEAN, ids=name)
def test_clean_script_reports_no_error_and_no_warning(path: Path) -> None:
    report = harness.traced(path, argv(path)).report
    loud = [f for f in report.findings if f.severity is not Severity.NOTE]
    assert not loud, [f"{f.rule} {f.path}:{f.line} {f.message}" for f in loud]
    assert {2, 3} <= set(report.coverage.traced_steps), "steps 2 and 3 were not traced, so silence says nothing"


@pytest.mark.parametrize("path", scripts(), ids=name)
def test_script_ends_under_the_trace_as_its_author_wrote(path: Path) -> None:
    outcome = harness.traced(path, argv(path))
    assert outcome.error.partition(":")[0] == harness.raises(path), outcome.error


def test_every_rule_of_the_trace_has_a_wrong_and_a_mended_script() -> None:
    lacking = {
        f"{rule.id}/{stem}.py"
        for rule in RULES.values()
        for stem in ("bad", "good")
        if "trace" in rule.seen_by
        and rule.id not in NEEDS_A_FRAMEWORK
        and rule.id != "PA003"  # it is about pyproject.toml: tests/launch/test_allowed.py
        and not (harness.FIXTURES / rule.id / f"{stem}.py").is_file()
    }
    assert not lacking


def test_every_bad_script_names_its_own_rule_on_a_line() -> None:
    bad, witnesses = harness.FIXTURES.glob("PA*/bad*.py"), ("trace", "check", "checkpoint")
    silent = [name(p) for p in bad if not any(p.parent.name in harness.expected(p, one) for one in witnesses)]
    assert not silent


def test_mended_scripts_traps_and_clean_scripts_expect_nothing() -> None:
    silent = [
        p for p in harness.FIXTURES.glob("*/*.py") if p.stem.startswith(("good", "trap")) or p.parent.name == "clean"
    ]
    assert not [name(p) for p in silent if harness.expected(p)]
