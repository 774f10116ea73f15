"""`precaudit report` and `precaudit doctor`: nothing is run again, and what is missing is said."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import pytest
from desk import Desk

from precaudit import __version__

WRONG = "import torch\ntorch.train(5, 'bfloat16')\n"


def test_a_report_is_shown_with_exit_code_0_unless_fail_on_is_given(desk: Desk) -> None:
    desk.trace(WRONG)
    shown = desk.precaudit("report")
    assert shown.code == 0
    assert "PA301" in shown.stdout
    assert desk.precaudit("report", "--fail-on", "error").code == 1
    assert desk.precaudit("report", "--fail-on", "error", "--ignore", "PA301").code == 0
    desk.trace("import torch\ntorch.step()\n")
    assert [desk.precaudit("report", *words).code for words in ((), ("--fail-on", "error"))] == [0, 5]


def test_open_writes_the_page_beside_the_report_and_prints_none_of_it(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    traced = desk.trace(WRONG)
    assert "next: precaudit report --open" in traced.stderr
    shown = desk.precaudit("report", "--open")
    assert (shown.code, shown.stdout) == (0, "")
    assert shown.stderr == "precaudit: .precaudit/latest/report.html: written; open it in a browser\n"
    assert "PA301" in (desk.folder / ".precaudit" / "latest" / "report.html").read_text()
    opened: list[str] = []
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or True)
    assert desk.precaudit("report", "--open").stderr.endswith("report.html: opened\n")
    assert opened == [(desk.folder / ".precaudit" / "latest" / "report.html").resolve().as_uri()]


@pytest.mark.parametrize("how", ["option", "environment", "settings"])
def test_the_latest_report_can_be_kept_elsewhere(desk: Desk, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    desk.write("out/mine.txt", "")
    words: tuple[str, ...] = ("--output-dir", "out") if how == "option" else ()
    if how == "environment":
        monkeypatch.setenv("PRECAUDIT_OUTPUT_DIR", "out")
    if how == "settings":
        desk.write("pyproject.toml", "[tool.precaudit]\noutput-dir = 'out'\n")
    traced = desk.trace(WRONG, *words)
    assert sorted(path.name for path in (desk.folder / "out").iterdir()) == ["latest", "mine.txt", "runs"]
    assert not (desk.folder / ".precaudit").exists()
    again = " ".join(["precaudit report", *words])
    assert f"next: {again} --open\n" in traced.stderr
    assert "PA301" in desk.precaudit(*again.split()[1:]).stdout
    assert "out/latest/report.json" in desk.precaudit("doctor").stdout or how == "option"


def test_a_json_report_shown_as_json_is_the_same_report(desk: Desk) -> None:
    traced = desk.trace(WRONG)
    shown = desk.precaudit("report", "--output-format", "json", "--output", "again.json")
    assert shown.stdout == ""
    assert json.loads((desk.folder / "again.json").read_text()) == traced.report


def test_two_runs_that_have_nothing_to_do_with_each_other_are_not_merged(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, dtype in (("a", "float32"), ("b", "bfloat16")):
        desk.trace(f"import torch\ntorch.train(5, '{dtype}')\n", "--output", f"{name}.json")
    refused = desk.precaudit("report", "a.json", "b.json")
    assert (refused.code, refused.stdout) == (2, "")
    assert refused.stderr == (
        "precaudit: a.json and b.json are two runs, not two nodes of one: both hold rank 0; "
        'show one at a time: "precaudit report a.json"\n'
    )
    for name in ("a.json", "b.json"):
        audited = (desk.folder / name).read_text().replace('"command": "trace"', '"command": "audit"')
        desk.write(f"audited-{name}", audited)
    assert "both hold rank 0" in desk.precaudit("report", "audited-a.json", "audited-b.json").stderr
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    desk.trace(WRONG, "--output", "b.json")
    assert (
        "a.json and b.json are two runs, not two nodes of one: they had 1 and 2 ranks"
        in desk.precaudit("report", "a.json", "b.json").stderr
    )
    text = (desk.folder / "b.json").read_text()
    old = re.sub(r'"started": "20\d\d', '"started": "1999', text).replace('"rank_ids": [\n   1', '"rank_ids": [\n   0')
    (desk.folder / "a.json").write_text(old)
    assert "and they never ran at once" in desk.precaudit("report", "a.json", "b.json").stderr


def test_a_report_says_which_run_it_is_of(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "start"]):
        subprocess.run([*git, *words], cwd=desk.folder, check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], cwd=desk.folder, capture_output=True, text=True).stdout.strip()
    run = desk.trace(WRONG).report["run"]
    assert run["argv"][1:] == ["train.py"]
    assert (run["cwd"], run["commit"], run["dirty"]) == (str(desk.folder), commit, False)
    assert abs(datetime.fromisoformat(run["started"]).timestamp() - time.time()) < 60
    assert 0 < run["duration_s"] < 60
    assert (run["host"], run["python"]) == (platform.node(), platform.python_version())
    subprocess.run([*git, "add", "."], cwd=desk.folder, check=True)
    again = desk.trace(WRONG, "--output", "x.html").report["run"]
    assert again["dirty"] is True
    assert again["id"] != run["id"]
    page = (desk.folder / "x.html").read_text()
    assert all(text in page for text in ("train.py", commit, "with uncommitted changes", platform.node()))
    checked = json.loads(desk.precaudit("check", ".", "--output-format", "json").stdout)["run"]
    assert checked["commit"] == commit
    # Shown from another folder, the source lines are still found.
    (desk.folder / "elsewhere").mkdir()
    monkeypatch.chdir(desk.folder / "elsewhere")
    assert "torch.train(5, 'bfloat16')" in desk.precaudit("report", "../.precaudit/latest/report.json").stdout


def test_reports_of_two_nodes_merge_into_one(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, (node, dtype) in enumerate((("node0", "float32"), ("node1", "bfloat16"))):
        monkeypatch.setenv("RANK", str(rank))
        desk.write(f"{node}/.keep", "")
        desk.trace(f"import torch\ntorch.train(5, '{dtype}')\n", "--output", f"{node}/report.json")
    shown = desk.precaudit("report", "node0", "node1", "--output-format", "json")
    both = json.loads(shown.stdout)
    assert shown.code == 0
    assert both["coverage"]["ranks"] == 2
    assert {f["rule"] for f in both["findings"]} >= {"PA301"}
    assert any(f["kind"] == "ranks_differ" for f in both["facts"])


def test_traces_that_a_launcher_starts_one_per_task_do_not_overwrite_each_other(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tasks(number: int) -> None:
        for rank in range(number):
            monkeypatch.setenv("RANK", str(rank))
            monkeypatch.setenv("WORLD_SIZE", str(number))
            desk.trace(f"import torch\ntorch.train(5, '{'bfloat16' if rank == 1 else 'float32'}')\n")

    def ranks() -> list[int]:
        coverage: Mapping[str, Any] = json.loads(desk.precaudit("report", "--output-format", "json").stdout)["coverage"]
        return list(coverage["rank_ids"])

    desk.trace(WRONG)
    tasks(3)
    assert ranks() == [0, 1, 2]
    assert desk.precaudit("report", "--fail-on", "error").code == 1
    tasks(2)
    assert ranks() == [0, 1]
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name)
    desk.trace(WRONG)
    assert ranks() == [0]


def test_rank_files_left_below_another_launcher_are_judged(desk: Desk) -> None:
    facts = [{"kind": "holds", "dtype": "bfloat16", "role": "optimizer_state", "count": 4,
              "site": [str(desk.folder / "train.py"), 3]}]  # fmt: skip
    for rank in range(2):
        one = {"format": 1, "rank": rank, "world_size": 2, "status": "stopped", "steps": 3, "facts": facts}
        desk.write(f"seen/rank-{rank}-{rank}.json", json.dumps(one))
    shown = desk.precaudit("report", "seen")
    assert shown.code == 0
    assert "PA301" in shown.stdout
    assert "train.py:3" in shown.stdout


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], '.precaudit/latest/report.json: no such report; run "precaudit trace train.py" first'),
        (["other.json"], "other.json: no such report; name a report that is there"),
        (["empty"], "empty: holds neither report.json nor rank files; name a report or a folder of one trace"),
        (
            ["old.json"],
            "old.json: not a precaudit report of format_version 1: format_version: input should be 1; "
            'write one with "precaudit trace --output report.json"',
        ),
        (
            ["new.json"],
            "new.json: was written by precaudit 99.1, and this is " + __version__ + ", which does not know all of it: "
            "gradients: extra inputs are not permitted; read it with precaudit 99.1, or write it anew",
        ),
        (
            ["half.json"],
            "half.json: not a precaudit report of format_version 1: invalid JSON: EOF while parsing an object at "
            'line 1 column 1; write one with "precaudit trace --output report.json"',
        ),
    ],
)
def test_what_is_no_report_is_refused_in_one_line(desk: Desk, words: list[str], line: str) -> None:
    desk.write("empty/.keep", "")
    written = {"tool": {"name": "precaudit", "version": __version__}, "command": "trace", "status": "clean"}
    desk.write("old.json", json.dumps({**written, "format_version": 0}))
    newer = {"name": "precaudit", "version": "99.1"}
    desk.write("new.json", json.dumps({**written, "format_version": 1, "tool": newer, "gradients": []}))
    desk.write("half.json", "{")
    refused = desk.precaudit("report", *words)
    assert (refused.code, refused.stderr) == (2, f"precaudit: {line}\n")


def test_doctor_says_what_it_found(desk: Desk) -> None:
    found = desk.precaudit("doctor")
    assert found.code == 0
    assert [line.split()[:2] for line in found.stdout.splitlines()] == [
        ["ok", "precaudit"], ["ok", "torch"], ["ok", "injection"], ["ok", "rules"], ["ok", "reports"],
    ]  # fmt: skip


def test_doctor_says_what_would_stop_a_trace(desk: Desk) -> None:
    desk.write(".precaudit", "a file where the folder should be")
    found = desk.precaudit("doctor")
    assert found.code == 1
    assert "x   reports" in found.stdout
