"""Under --watch the report is there when the first window is over, and is renewed while the command runs on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent

SCRIPT = """
import os, time, torch
from torch import nn

def train(model, optimizer, steps):
    for _ in range(steps):
        model(torch.randn(8, 4, dtype=model.weight.dtype)).float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

first = nn.Linear(4, 2)
train(first, torch.optim.SGD(first.parameters(), lr=0.1), 5)
while not os.path.exists("go"):
    time.sleep(0.05)
second = nn.Linear(4, 2).bfloat16()
train(second, torch.optim.AdamW(second.parameters()), 5)
time.sleep(600)
"""


def errors(report: dict[str, Any]) -> int:
    return sum(finding["severity"] == "error" for finding in report["findings"])


def wait_for(path: Path, wanted: Any) -> dict[str, Any]:
    until = time.monotonic() + 90
    while time.monotonic() < until:
        if path.exists():
            report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if wanted(report):
                return report
        time.sleep(0.1)
    raise AssertionError(f"{path} never said so")


def test_the_report_of_a_run_that_goes_on_is_renewed_at_each_event(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT, encoding="utf-8")
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    run = subprocess.Popen(
        [sys.executable, "-m", "precaudit", "trace", "--watch", "train.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stderr=(tmp_path / "said").open("w"),
    )
    try:
        latest = tmp_path / ".precaudit" / "latest" / "report.json"
        first = wait_for(latest, lambda report: report["coverage"]["traced_steps"] == [2, 3])
        assert (first["status"], first["findings"]) == ("clean", [])
        assert "the command runs on: this is what was seen until now" in first["coverage"]["notes"]
        (tmp_path / "go").touch()
        later = wait_for(latest, lambda report: report["findings"])
        steps = later["coverage"]["traced_steps"]
        assert {finding["rule"] for finding in later["findings"]} >= {"PA101", "PA301"}
        said = (tmp_path / "said").read_text(encoding="utf-8")  # one line for each window that shows something new
        assert re.findall("precaudit: steps (.*) were watched: (no errors|[0-9]+ errors?)", said) == [
            ("2 and 3", "no errors"),
            (" and ".join(filter(None, [", ".join(map(str, steps[:-1])), str(steps[-1])])), f"{errors(later)} errors"),
        ]
        assert said.count("it runs on (now: precaudit report)") == 2
    finally:
        run.send_signal(signal.SIGTERM)
        run.wait(60)
