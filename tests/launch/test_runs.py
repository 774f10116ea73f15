"""Runs are kept with who, when and what they were; the list names them, and old ones go."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from desk import Desk

WRONG = "import torch\nfor step in range(6):\n    torch.train(1, 'bfloat16')\n"
"""For the stand-in torch: a step that holds its optimizer state in bfloat16."""

REAL = """
import torch
from torch import nn

class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 3)
        self.frozen = nn.Linear(3, 2).requires_grad_(False)

    def forward(self, x):
        return self.frozen(self.first(x))

model = Small()
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
for step in range(4):
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
"""


@pytest.fixture(autouse=True)
def no_folder_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PRECAUDIT_OUTPUT_DIR", raising=False)


def kept(desk: Desk, home: str = ".precaudit") -> list[Path]:
    return sorted((desk.folder / home / "runs").iterdir(), reverse=True)


def test_each_run_is_kept_under_its_id_and_latest_is_the_newest(desk: Desk) -> None:
    ids = [desk.trace(WRONG).report["run"]["id"] for _ in range(2)]
    folders = kept(desk)
    assert sorted(folder.name.rpartition("-")[2] for folder in folders) == sorted(one[:8] for one in ids)
    for folder in folders:
        assert os.listdir(folder) == ["report.json"], "what the ranks wrote is gone"
    (mine,) = [folder for folder in folders if folder.name.endswith(ids[1][:8])]
    assert json.loads((mine / "report.json").read_text()) == desk.report


def test_the_list_names_runs_newest_first_and_their_names_are_enough_for_report_and_diff(desk: Desk) -> None:
    one = desk.trace(WRONG).report["run"]["id"][:8]
    other = desk.trace(WRONG.replace("bfloat16", "float32")).report["run"]["id"][:8]
    listed = desk.precaudit("runs").stdout.splitlines()
    assert {line.split(" · ")[0].rpartition("-")[2] for line in listed} == {one, other}
    (wrong,) = [line for line in listed if one in line]
    assert "findings · 1 error · 0 warnings" in wrong
    assert wrong.endswith("train.py")
    rows = json.loads(desk.precaudit("runs", "--output-format", "json").stdout)
    assert {row["status"] for row in rows} == {"findings", "clean"}
    assert "PA301" in desk.precaudit("report", one).stdout
    compared = desk.precaudit("diff", one, other)
    assert "optimizer state was bfloat16, is float32" in compared.stdout
    assert compared.code == 1


def test_runs_beyond_the_number_to_keep_are_removed_oldest_first(desk: Desk) -> None:
    desk.write("pyproject.toml", "[tool.precaudit]\nkeep-runs = 2\n")
    for day in (1, 2, 3):
        old = desk.folder / ".precaudit" / "runs" / f"2020010{day}-000000-{day}{day}{day}{day}{day}{day}{day}{day}"
        old.mkdir(parents=True)
        (old / "report.json").write_text("{}")
    newest = desk.trace(WRONG).report["run"]["id"][:8]
    assert [folder.name.rpartition("-")[2] for folder in kept(desk)] == [newest, "33333333"]
    listed = desk.precaudit("runs").stdout.splitlines()
    assert listed[1] == "20200103-000000-33333333 · not a report of this precaudit"


def test_no_run_but_the_latest_is_kept_where_none_is_wanted(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRECAUDIT_KEEP_RUNS", "0")
    assert desk.trace(WRONG).report
    assert not (desk.folder / ".precaudit" / "runs").exists()
    assert desk.precaudit("runs").stderr == (
        "precaudit: .precaudit/runs: no run is kept here; make one: precaudit trace <your training command>\n"
    )


@pytest.mark.parametrize("how", ["option", "environment"])
def test_runs_are_kept_and_listed_elsewhere(desk: Desk, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    words = ("--output-dir", "out") if how == "option" else ()
    if how == "environment":
        monkeypatch.setenv("PRECAUDIT_OUTPUT_DIR", "out")
    run = desk.trace(WRONG, *words)
    assert len(kept(desk, "out")) == 1, run.stderr
    assert not (desk.folder / ".precaudit").exists()
    assert "train.py" in desk.precaudit("runs", *words).stdout


@pytest.mark.parametrize("value", ["-1", "many", "true"])
def test_a_number_of_runs_that_is_none_is_refused(desk: Desk, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("PRECAUDIT_KEEP_RUNS", value)
    refused = desk.trace(WRONG)
    assert refused.ours == ["precaudit: PRECAUDIT_KEEP_RUNS: a whole number is expected, 0 or more"]
    assert refused.code == 2


def test_a_report_says_which_run_it_was(real_desk: Desk) -> None:
    desk = real_desk
    for words in (["init"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-m", "x", "-q"]):
        desk.write("notes.txt", "")
        subprocess.run(["git", *words], cwd=desk.folder, check=True, capture_output=True)
    desk.write("notes.txt", "changed")
    import torch

    run = desk.trace(REAL, arguments=("--lr", "1")).report["run"]
    assert run["argv"][-3:] == ["train.py", "--lr", "1"]
    assert (run["model"], run["parameters"]) == ("Small", 4 * 3 + 3 + 3 * 2 + 2)
    assert run["versions"]["torch"] == torch.__version__
    assert run["gpu"] == "" or torch.cuda.is_available()
    assert len(run["commit"]) == 40
    assert run["dirty"] is True
    assert run["duration_s"] > 0
    assert run["host"]


def test_a_watched_run_tells_each_event_in_a_line_and_its_exit_code_at_the_end(real_desk: Desk) -> None:
    desk = real_desk
    desk.write("train.py", REAL.replace("range(4)", "range(40)") + LATER)
    watched = desk.precaudit("watch", "train.py")
    lines = [json.loads(line) for line in (desk.folder / ".precaudit/latest/events.jsonl").read_text().splitlines()]
    assert lines[0]["event"] == "began"
    assert lines[0]["run"] == watched.report["run"]["id"]
    assert any(line["event"] == "window" and 2 in line["steps"] for line in lines)
    found = [line for line in lines if line["event"] == "finding"]
    assert "PA301" in {line["rule"] for line in found}
    assert all(line["path"] == "train.py" for line in found)
    assert lines[-1]["event"] == "ended"
    assert (lines[-1]["exit_code"], watched.code) == (1, 1)
    assert [line["time"] for line in lines] == sorted(line["time"] for line in lines)
    (folder,) = kept(desk)
    assert (folder / "events.jsonl").read_text() == (desk.folder / ".precaudit/latest/events.jsonl").read_text()
    desk.trace(REAL)
    assert not (desk.folder / ".precaudit/latest/events.jsonl").exists(), "these are no events of the latest run"


LATER = """
second = nn.Linear(4, 2).bfloat16()
optimizer = torch.optim.AdamW(second.parameters())
for step in range(6):
    second(torch.ones(2, 4, dtype=torch.bfloat16)).float().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
"""
