"""Any report at all, from any text: every format renders it, and the terminal's stays inside its width."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from precaudit import rulebook
from precaudit.model.evidence import EVIDENCE
from precaudit.model.vocabulary import FLOATING, Role
from precaudit.model.wire import Coverage, Finding, Line, Report, RoleSummary, Severity, Tool
from precaudit.report import FORMATS, render
from tests.report import samples

text = st.text(max_size=60)
numbers = st.floats(allow_nan=True, allow_infinity=True)
lines = st.none() | st.integers(1, 20)
causes = st.none() | st.builds(
    Line, text=text, path=st.sampled_from(["", "train.py", "gone.py"]), line=st.integers(0, 20)
)
findings = st.builds(
    Finding,
    rule=st.sampled_from([*rulebook.load().rules, "ZZ999"]),
    name=text,
    severity=st.sampled_from(Severity),
    role=st.none() | st.sampled_from([role.value for role in Role]),
    message=text,
    path=st.none() | st.sampled_from(["train.py", "gone.py"]) | text,
    line=lines,
    column=lines,
    end_line=lines,
    end_column=lines,
    module=text,
    evidence=st.dictionaries(st.sampled_from(list(EVIDENCE)) | text, numbers, max_size=3),
    cause=causes,
    fix=text,
    cost_bytes=st.integers(0, 10**13),
    fingerprint=text,
    suppressed=st.booleans(),
)
roles = st.builds(
    RoleSummary,
    role=st.sampled_from([role.value for role in Role]) | text,
    dtype=st.none() | st.sampled_from(list(FLOATING)) | text,
    tensors=st.integers(0, 10**7),
    bytes=st.integers(0, 10**13),
    verdict=st.sampled_from(["violation", "allowed", "ok", "not-observed"]),
)
coverages = st.builds(
    Coverage,
    skipped=st.lists(text, max_size=8),
    notes=st.lists(text, max_size=3),
    traced_steps=st.lists(st.integers(1, 9), max_size=3),
    not_observed=st.dictionaries(text, text, max_size=3),
    overhead=st.dictionaries(text, st.floats(0, 1e6), max_size=2),
    setup=st.dictionaries(st.sampled_from(["torch", "autocast", "optimizer"]) | text, text, max_size=3),
    unattributed_ops=st.floats(0, 1),
)
reports = st.builds(
    Report,
    tool=st.just(Tool(version="0.1.0")),
    command=st.sampled_from(["check", "trace", "audit", "checkpoint", "snapshot"]),
    status=st.sampled_from(["clean", "findings", "inconclusive", "script-failed"]),
    findings=st.lists(findings, max_size=5),
    roles=st.lists(roles, max_size=5),
    coverage=coverages,
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return samples.write_sources(tmp_path_factory.mktemp("sources"))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(report=reports, width=st.integers(40, 130), verbosity=st.integers(-1, 1))
def test_any_report_renders_in_every_format(root: Path, report: Report, width: int, verbosity: int) -> None:
    for fmt in FORMATS:
        shown = render(report, fmt, root=root, width=width, verbosity=verbosity)
        assert shown.encode("utf-8").decode("utf-8") == shown
        if fmt in ("json", "sarif", "gitlab"):
            json.loads(shown, parse_constant=pytest.fail)
        if fmt == "text":
            assert max(cell_len(line) for line in shown.splitlines()) <= width
