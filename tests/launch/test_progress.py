"""The line of progress on a real pseudo-terminal: how far the trace is, and afterwards nothing of it is there."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import textwrap
from collections.abc import Callable
from fcntl import ioctl
from pathlib import Path

import pytest
from screen import Screen

from precaudit.launch.progress import Progress, can_show

SLOW = """
import sys, time, torch
model = torch.nn.Linear(4, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
print("first words", flush=True)
time.sleep(0.9)
for step in range(1, 7):
    model(torch.randn(3, 4)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    {per_step}
    time.sleep(0.7)
print("last words", flush=True)
"""
BAR = """print("\\r%d/6 |%-6s|" % (step, "#" * step), end="", file=sys.stderr, flush=True)"""


def on_a_terminal(folder: Path, *arguments: str, rows: int = 30, at_end: Callable[[int], None] | None = None,
                  **variables: str) -> tuple[int, Screen, list[str]]:  # fmt: skip
    """Exit code, the screen at the end, and each different last row that the screen showed meanwhile."""
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, 100, 0, 0))
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "NO_COLOR": "1", "OMP_NUM_THREADS": "1"} | variables
    child = subprocess.Popen(
        [sys.executable, "-m", "precaudit", "trace", *arguments],
        cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        preexec_fn=lambda: ioctl(0, termios.TIOCSCTTY, 0) and None,
    )  # fmt: skip
    os.close(theirs)
    screen = Screen(100, rows)
    seen: list[str] = []
    while True:
        if at_end is not None and any("tracing step" in row for row in seen):
            at_end(child.pid)
            at_end = None
        if not select.select([ours], [], [], 60)[0]:
            child.kill()
            pytest.fail("nothing for a minute")
        try:
            data = os.read(ours, 65536)
        except OSError:  # Linux says so when the other end is closed
            break
        if not data:
            break
        screen.feed(data.decode())
        if screen.lines[-1] not in seen:
            seen.append(screen.lines[-1])
    os.close(ours)
    return child.wait(), screen, seen


def program(folder: Path, per_step: str = "pass") -> str:
    path = folder / "slow.py"
    path.write_text(textwrap.dedent(SLOW).replace("{per_step}", per_step))
    return path.name


@pytest.mark.parametrize("rows", [30, 8])
def test_the_last_row_says_how_far_it_is_and_is_empty_afterwards(tmp_path: Path, rows: int) -> None:
    code, screen, seen = on_a_terminal(tmp_path, program(tmp_path), rows=rows)
    assert code == 0
    said = " ".join(seen)
    for stage in ("precaudit: torch is loaded, no step yet", "tracing step 2 of 3", "tracing step 3 of 3"):
        assert stage in said, said
    assert "tracing step" not in screen.text
    assert "no step yet" not in screen.text
    assert "first words" in screen.text
    assert "was stopped on purpose after step 3" in screen.text


def test_a_progress_bar_of_the_program_stays_whole(tmp_path: Path) -> None:
    _, screen, seen = on_a_terminal(tmp_path, program(tmp_path, BAR), rows=12)
    assert any("tracing step" in row for row in seen)
    assert "2/6 |##    |" in screen.text.splitlines()
    assert "tracing step" not in screen.text


def test_a_command_that_runs_on_has_the_whole_terminal_from_then_on(tmp_path: Path) -> None:
    _, screen, seen = on_a_terminal(tmp_path, "--keep-going", program(tmp_path, 'print(f"step {step}", flush=True)'))
    at = next(number for number, row in enumerate(seen) if "tracing step 3" in row)
    assert not any("precaudit: writing" in row for row in seen[at:])
    assert "last words" in screen.text
    assert "tracing step" not in screen.text


def test_what_is_printed_is_the_same_as_without_a_terminal(tmp_path: Path) -> None:
    """Word for word, in order; a terminal of another kind shows no line at all."""
    name = program(tmp_path, 'print(f"step {step}", flush=True)')
    _, shown, _ = on_a_terminal(tmp_path, name, rows=60)
    _, plain, seen = on_a_terminal(tmp_path, name, rows=60, TERM="dumb")
    assert not any("tracing" in row for row in seen)
    words = lambda screen: [w for w in screen.text.split() if not any(c.isdigit() for c in w)]  # noqa: E731
    assert words(shown) == words(plain)


def test_a_trace_that_is_ended_gives_the_row_back(tmp_path: Path) -> None:
    _, screen, _ = on_a_terminal(tmp_path, program(tmp_path), at_end=lambda pid: os.kill(pid, signal.SIGTERM))
    assert "tracing step" not in screen.text


def test_no_line_is_drawn_where_there_is_no_terminal() -> None:
    with open(os.devnull, "w") as nothing:
        assert not can_show(nothing, {"TERM": "xterm"})


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ([], "starting"),
        ([("watching", 0, 0)], "first backward seen, no step yet"),
        ([("watching", 0, 3)], "step 3 seen, tracing from step 11 on"),
        ([("watching", 0, 10), ("watching", 1, 11)], "tracing step 11 of 12"),
        ([("stopped", 2, 12), ("watching", 1, 11)], "tracing step 12 of 12"),
        ([("stopped", 2, 12)], "writing the report"),
    ],
)
def test_it_says_what_the_slowest_rank_is_at(tmp_path: Path, files: list[tuple[str, int, int]], says: str) -> None:
    for rank, (status, steps, attempts) in enumerate(files):
        content = {"status": status, "steps": steps, "coverage": {"attempts": attempts}}
        (tmp_path / f"rank-{rank}.json").write_text(json.dumps(content))
    (tmp_path / "rank-9.json").write_text('{"status": "watch')  # being written
    assert Progress(2, tmp_path, tmp_path, 10, 2, False).says().partition(" (")[0] == says
