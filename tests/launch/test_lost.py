"""What was seen is never lost in silence: killed runs, full disks, folders that go, and what stands in the way."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from precaudit.launch import identity, runs
from precaudit.launch.bootstrap import TraceSettings

TRAIN = """
import os, shutil, glob, sys, time, torch
torch.manual_seed(0)
model = torch.nn.Linear(2, 2).bfloat16()
optimizer = torch.optim.AdamW(model.parameters())
for step in range(6):
    model(torch.ones(1, 2).bfloat16()).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    print(step, flush=True)
    {when}
print(model.weight.tolist())
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def precaudit(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "precaudit", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)  # type: ignore[call-overload, no-any-return]


def trace(when: str, *options: str, **more: object) -> subprocess.CompletedProcess[str]:
    Path("train.py").write_text(TRAIN.format(when=when))
    return precaudit("trace", "--keep-going", *options, sys.executable, "train.py", **more)


def report() -> dict[str, object]:
    found: dict[str, object] = json.loads(Path(".precaudit/latest/report.json").read_text())
    return found


def test_a_cleaner_of_the_temporary_folder_takes_nothing_that_was_seen(here: Path) -> None:
    done = trace("if step == 0: [shutil.rmtree(p) for p in glob.glob(os.environ['TMPDIR'] + '/precaudit-*')]")
    assert done.returncode == 1, done.stderr
    assert {"PA101", "PA301"} <= {one["rule"] for one in report()["findings"]}  # type: ignore[index, attr-defined]
    assert "no Python" not in done.stderr
    (run,) = (here / ".precaudit" / "runs").iterdir()
    assert os.listdir(run) == ["report.json"], "the run is over and its report is written"


def test_a_folder_of_the_run_that_goes_is_made_again(here: Path) -> None:
    done = trace("if step == 1: shutil.rmtree('.precaudit/runs')")
    assert done.returncode == 1, done.stderr
    assert report()["coverage"]["steps"] == 2  # type: ignore[index]


def test_what_a_full_disk_kept_from_being_written_is_said_with_the_reason(here: Path) -> None:
    """No file may grow beyond 1000 bytes from step 2 on: the rank file cannot be renewed, as on a full disk."""
    limit = "if step == 1: import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    done = trace(limit + "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))")
    line = done.stderr.strip().splitlines()[-1]
    assert "what rank 0 saw after optimizer step" in line
    assert line.endswith("File too large; see to that, or name another folder with --output-dir")
    assert "let it take at least" not in done.stderr
    assert line.partition("train.py: ")[2] in " ".join(report()["coverage"]["notes"])  # type: ignore[index]


@pytest.mark.parametrize("victim", ["precaudit", "both"])
def test_a_run_whose_precaudit_was_killed_is_offered_by_the_next_command(here: Path, victim: str) -> None:
    (here / "train.py").write_text(TRAIN.format(when="if step == 3: time.sleep(60)"))
    command = [sys.executable, "-m", "precaudit", "trace", "--keep-going", sys.executable, "train.py"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
    assert running.stdout is not None
    while running.stdout.readline().strip() != b"3":
        pass
    if victim == "both":
        os.killpg(running.pid, signal.SIGKILL)
    else:
        running.kill()
    running.wait()
    try:
        (left,) = runs.abandoned(Path(".precaudit"))
        said = precaudit("report")
        assert f'was ended before its report; "precaudit report {left.path}" shows what was seen' in said.stderr
        shown = precaudit("report", str(left.path), "--output-format", "json")
        found = json.loads(shown.stdout)
        assert found["coverage"]["steps"] == 2
        assert {"PA101", "PA301"} <= {one["rule"] for one in found["findings"]}
        assert str(left.path) in precaudit("trace", sys.executable, "-c", "pass").stderr
    finally:
        if victim != "both":
            os.killpg(running.pid, signal.SIGKILL)


def test_a_run_that_is_under_way_is_nobody_elses_and_an_empty_one_is_cleared_away(here: Path) -> None:
    home = here / "home"
    with runs.run_folder(home, TraceSettings(cwd="/"), "train.py", identity.begin()) as run:
        folder = run.path
        (folder / "rank-0-1.json").write_text("{}")
        assert runs.abandoned(home) == []
        owner = json.loads((folder / runs.OWNER).read_text())
    assert os.listdir(home) == [".gitignore"]
    for number in range(runs.KEPT + 2):
        dead = home / runs.FOLDER / f"2026-{number}"
        dead.mkdir(parents=True)
        (dead / runs.OWNER).write_text(json.dumps({**owner, "born": "never", "started": float(number)}))
        if number:
            (dead / "rank-0-1.json").write_text("{}")
    left = runs.abandoned(home)
    assert [one.started for one in left] == [float(n) for n in range(runs.KEPT + 1, 1, -1)]
    assert len(list((home / runs.FOLDER).iterdir())) == runs.KEPT
    for odd in ("", "[]", '{"pid": "x"}', "[" * 100_000, '{"pid": -1, "host": "elsewhere"}'):
        (left[0].path / runs.OWNER).write_text(odd)
        assert len(runs.abandoned(home)) <= runs.KEPT


@pytest.mark.parametrize(
    ("stands", "said"),
    [
        ("file", ".precaudit is not a folder"),
        ("link", ".precaudit is a link"),
        ("folder", ".precaudit/latest/report.json: is a directory; move it away"),
    ],
)
def test_what_stands_in_the_way_is_said_before_the_training_starts(here: Path, stands: str, said: str) -> None:
    if stands == "file":
        (here / ".precaudit").write_text("")
    elif stands == "link":
        (here / ".precaudit").symlink_to(here / "tmp")
    else:
        (here / ".precaudit" / "latest" / "report.json").mkdir(parents=True)
    done = trace("if step == 0: print('TRAINING', file=sys.stderr, flush=True)")
    assert done.returncode == 1, done.stderr
    before, _, after = done.stderr.partition("TRAINING")
    assert said in before
    assert "choose another folder with --output-dir or PRECAUDIT_OUTPUT_DIR" in before
    assert "cannot be written" not in after
    assert "PA301" in after
    assert not [name for name in os.listdir(here / "tmp") if name != "torchinductor_root"]


def test_no_room_for_the_tracer_is_one_line(here: Path) -> None:
    def small() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))

    began = time.monotonic()
    done = trace("", preexec_fn=small)
    assert done.returncode == 2
    assert done.stderr.strip().endswith("cannot be filled: File too large; set TMPDIR to a folder with room")
    assert "bug of precaudit" not in done.stderr
    assert time.monotonic() - began < 60
