"""An audit sets the source beside the run: each finding confirmed, refuted or not exercised; fixes are tried out."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from desk import Desk

from precaudit import rulebook
from precaudit.contracts.both import join
from precaudit.model.vocabulary import Fact, Kind, Role, Site
from precaudit.model.wire import Finding, Line, Report, Severity, Tool

BOOK = rulebook.load()

TRAIN = """
import sys
import torch
from torch import nn

torch.manual_seed(0)
model = nn.Linear(8, 8).to(torch.bfloat16 if "--low" in sys.argv else torch.float32)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

def tune(model):
    other = nn.Linear(8, 8).half()
    tuned = torch.optim.AdamW(other.parameters(), lr=1e-5)
    other(torch.ones(2, 8).half()).float().sum().backward()
    tuned.step()

for step in range(6):
    x = torch.randn(4, 8, dtype=model.weight.dtype)
    model(x).float().square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    if "--tune" in sys.argv:
        tune(model)
"""

LOW_LOSS = """
import torch
from torch import nn
import layers

torch.manual_seed(0)
model = layers.Model()
optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
for step in range(6):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(torch.randn(64, 8))
    loss = nn.functional.cross_entropy(output, torch.zeros(64, dtype=torch.long))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
"""
LAYERS = """
from torch import nn

class Model(nn.Linear):
    def __init__(self):
        super().__init__(8, 4)
"""


def finding(rule: str, line: int, role: Role | None, dtype: str, **more: Any) -> Finding:
    known = BOOK.rules[rule]
    return Finding(
        rule=rule, name=known.name, severity=Severity.ERROR, role=role.value if role else None, message=known.message,
        path="train.py", line=line, column=1, dtype=dtype, **more,
    )  # fmt: skip


def report(*findings: Finding, facts: tuple[Fact, ...] = ()) -> Report:
    return Report(
        tool=Tool(version="0"), command="trace", status="clean", findings=list(findings),
        facts=[fact.as_json() for fact in facts],
    )  # fmt: skip


def held(dtype: str, line: int, role: Role = Role.LOSS, **attrs: Any) -> Fact:
    return Fact(Kind.HOLDS, dtype, role, Site("train.py", line), attrs=attrs)


def standings(static: list[Finding], traced: Report) -> dict[str, str]:
    return {f"{one.rule}:{one.line}": one.standing for one in join(static, traced, BOOK)}


class TestJoin:
    def test_the_same_rule_on_the_same_line_is_one_finding_that_is_confirmed_with_the_runs_figures(self) -> None:
        mine = finding("PA401", 5, Role.LOSS, "bfloat16", end_line=7, seen_by=["check"], fixable=True)
        theirs = finding("PA401", 6, Role.LOSS, "bfloat16", evidence={"loss_error": 0.01}, seen_by=["trace"])
        (one,) = join([mine], report(theirs), BOOK)
        assert (one.standing, one.seen_by, one.fixable) == ("confirmed", ["check", "trace"], True)
        assert one.evidence == {"loss_error": 0.01}

    def test_a_line_that_held_another_dtype_is_refuted_for_this_run_and_a_note(self) -> None:
        mine = finding("PA401", 5, Role.LOSS, "bfloat16")
        (one,) = join([mine], report(facts=(held("float32", 5),)), BOOK)
        assert (one.standing, one.severity) == ("refuted", Severity.NOTE)
        assert one.standing_because == "in this run it held float32 here"

    def test_what_another_line_held_refutes_nothing(self) -> None:
        mine = finding("PA401", 5, Role.LOSS, "bfloat16")
        assert standings([mine], report(facts=(held("float32", 6),))) == {"PA401:5": "not-exercised"}

    def test_what_another_role_held_there_refutes_nothing(self) -> None:
        mine = finding("PA401", 5, Role.LOSS, "bfloat16")
        facts = (held("float32", 5, Role.GRADIENT),)
        assert standings([mine], report(facts=facts)) == {"PA401:5": "not-exercised"}

    def test_a_running_sum_on_the_line_of_an_average_refutes_nothing(self) -> None:
        mine = finding("PA103", 5, Role.ACCUMULATOR, "bfloat16")
        sums = (held("float32", 5, Role.ACCUMULATOR, what="metric"),)
        averages = (held("float32", 5, Role.ACCUMULATOR, what="ema"),)
        assert standings([mine], report(facts=sums)) == {"PA103:5": "not-exercised"}
        assert standings([mine], report(facts=averages)) == {"PA103:5": "refuted"}

    def test_a_finding_that_was_not_selected_is_not_refuted(self) -> None:
        mine = finding("PA401", 5, Role.LOSS, "bfloat16")
        assert standings([mine], report(facts=(held("bfloat16", 5),))) == {"PA401:5": "not-exercised"}

    def test_what_no_run_can_show_says_so(self) -> None:
        mine = finding("PA001", 5, None, "")
        (one,) = join([mine], report(), BOOK)
        assert (one.standing, one.standing_because) == ("not-exercised", "only the source shows it; no run does")

    def test_a_finding_of_the_run_alone_gets_the_line_of_the_source_that_brought_it_about(self) -> None:
        mine = finding("PA101", 3, Role.OPTIMIZER_STATE, "bfloat16", cause=Line(text="cast here", path="a.py", line=1))
        theirs = finding("PA301", 9, Role.OPTIMIZER_STATE, "bfloat16")
        told = {one.rule: one for one in join([mine], report(theirs), BOOK)}
        assert told["PA301"].standing == ""
        assert told["PA301"].cause == mine.cause

    def test_two_lines_of_one_rule_are_not_taken_for_each_other(self) -> None:
        static = [finding("PA401", line, Role.LOSS, "bfloat16") for line in (5, 15)]
        traced = report(finding("PA401", 15, Role.LOSS, "bfloat16"))
        assert standings(static, traced) == {"PA401:5": "not-exercised", "PA401:15": "confirmed"}


def audited(desk: Desk, *words: str) -> tuple[dict[str, set[str]], Any]:
    """(standing -> "rule:line"), and what came of the command."""
    done = desk.precaudit("audit", "train.py", *words)
    found: dict[str, set[str]] = {}
    for one in done.report["findings"]:
        found.setdefault(one["standing"], set()).add(f"{one['rule']}:{one['line']}")
    return found, done


@pytest.mark.slow
def test_an_audit_confirms_what_ran_and_says_what_did_not(real_desk: Desk) -> None:
    real_desk.write("train.py", TRAIN)
    found, done = audited(real_desk)
    assert done.report["command"] == "audit"
    assert {"PA301:12", "PA201:13"} <= found["not-exercised"]
    assert "confirmed" not in found
    assert done.code == 1
    assert "not exercised: the traced steps showed nothing of it on this line" in " ".join(done.stderr.split())
    shown = real_desk.precaudit("report", "--output-format", "md").stdout
    assert "not exercised: the traced steps showed nothing" in shown
    tuned, done = audited(real_desk, "--tune")
    assert {"PA301:12", "PA201:13"} <= tuned["confirmed"]


@pytest.mark.slow
def test_a_program_that_names_no_source_is_traced_alone(real_desk: Desk) -> None:
    real_desk.write("train.py", TRAIN)
    real_desk.write("run.sh", f"exec {sys.executable} train.py\n")
    done = real_desk.precaudit("audit", "bash", "run.sh")
    assert done.ours[0] == (
        "precaudit: no source file of the command is known: only the run is audited; check its source by itself"
    )
    assert done.report["coverage"]["files"] == 0
    assert done.report["status"] == "clean"


@pytest.mark.slow
def test_a_fix_is_tried_in_a_copy_and_said_before_and_after(real_desk: Desk) -> None:
    real_desk.write("train.py", LOW_LOSS)
    real_desk.write("layers.py", LAYERS)
    real_desk.write("data/note.txt", "x")
    done = real_desk.precaudit("audit", "--verify-fix", "train.py")
    said = " ".join(done.stderr.split())
    assert "verify-fix: with 1 fix in a copy: PA401 is gone" in said, done.stderr
    assert (real_desk.folder / "train.py").read_text() == LOW_LOSS, "the user's own file is as it was"
    assert any("PA401 is gone" in note for note in done.report["coverage"]["notes"])
    assert done.code == 1, "the exit code is that of what is there"
    kept = json.loads((real_desk.folder / ".precaudit/latest/report.json").read_text())
    assert {one["rule"]: one["standing"] for one in kept["findings"]}["PA401"] == "confirmed"


@pytest.mark.slow
def test_without_a_certain_fix_nothing_is_run_again(real_desk: Desk) -> None:
    real_desk.write("train.py", TRAIN)
    done = real_desk.precaudit("audit", "--verify-fix", "-m", "train", "--low")
    assert done.report["coverage"]["files"] == 1, "the source of a module is found too"
    assert "PA301:8" in {
        f"{one['rule']}:{one['line']}" for one in done.report["findings"] if one["standing"] != "refuted"
    }
    assert "precaudit: verify-fix: no fix is certain here, so nothing was changed or run again" in done.ours
    assert sum(line.startswith("precaudit: running ") for line in done.ours) == 1
