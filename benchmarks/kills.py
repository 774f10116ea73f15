"""Ends traced runs at random moments in every way, and looks whether anything that was seen is lost or untrue.

    python benchmarks/kills.py --runs 200 --seed 1

After each: every JSON file that is left parses; the report holds each step that had ended; its status and reason are
true; and of precaudit no process is left. Ways: the command, precaudit or both are killed; the command is interrupted,
runs out of memory, meets a full disk, or its folders are removed; the shell that started precaudit is killed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STEPS = 20
"""Fewer than after which a window ends, whatever it has seen: all of them are traced."""
TRAIN = f"""
import json, os, sys, time, torch
torch.manual_seed(0)
torch.set_num_threads(1)
what, moment = sys.argv[1], int(sys.argv[2])
model = torch.nn.Linear(4, 4).bfloat16()
optimizer = torch.optim.AdamW(model.parameters())
for step in range({STEPS}):
    model(torch.ones(2, 4).bfloat16()).float().square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    model(torch.ones(2, 4).bfloat16())  # the step is over once the next one has begun
    print(step, os.getpid(), flush=True)
    if step == moment and what == "memory":
        raise MemoryError
    if step == moment and what == "disk":
        import resource, signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (700, 700))
    if step == moment and what in ("runs", "private"):
        import glob, shutil
        for folder in glob.glob(".precaudit/runs" if what == "runs" else os.environ["TMPDIR"] + "/precaudit-*"):
            shutil.rmtree(folder)
    time.sleep(0.01)
"""
WAYS = ("child", "precaudit", "both", "interrupt", "terminate", "memory", "disk", "runs", "private", "shell")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    chance = random.Random(asked.seed)
    ways, wrong = Counter[str](), []
    for number in range(asked.runs):
        way, moment = WAYS[number % len(WAYS)], chance.randrange(STEPS - 5)
        ways[way] += 1
        for line in end_one(way, moment):
            wrong.append(f"{way} at step {moment}: {line}")
            print(wrong[-1], flush=True)
    print(f"{asked.runs} runs, {len(wrong)} things wrong; {', '.join(f'{n} {way}' for way, n in ways.items())}")
    return int(bool(wrong))


def end_one(way: str, moment: int) -> list[str]:
    """Traces a training, ends it in this way after this step, and says what is wrong with what is left."""
    with tempfile.TemporaryDirectory(prefix="kills-") as name:
        here = Path(name)
        (here / "tmp").mkdir()
        (here / "train.py").write_text(TRAIN)
        environment = {**os.environ, "TMPDIR": str(here / "tmp"), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        trace = [sys.executable, "-m", "precaudit", "trace", "--skip", "0", "--steps", "1000", "--keep-going"]
        command = [*trace, sys.executable, "train.py", way, str(moment)]
        if way == "shell":
            command = ["bash", "-c", f"{' '.join(command)}; true"]
        running = subprocess.Popen(
            command, cwd=here, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True, preexec_fn=may_be_interrupted,
        )  # fmt: skip
        assert running.stdout is not None
        done = pid = 0
        for line in running.stdout:
            done, pid = int(line.split()[0]) + 1, int(line.split()[1])
            if done == moment + 1:
                end(way, running, pid)
        running.stdout.close()
        running.wait(120)
        session_ends(running.pid)
        return look(way, here, environment, done, moment)


def may_be_interrupted() -> None:
    """What a shell starts in the background ignores Ctrl-C, and so would all that it starts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def end(way: str, running: subprocess.Popen[str], pid: int) -> None:
    """Sends what this way of ending sends; the others happen in the command itself."""
    sent: dict[str, Callable[[], None]] = {
        "child": lambda: os.kill(pid, signal.SIGKILL),
        "terminate": lambda: os.kill(running.pid, signal.SIGTERM),
        "interrupt": lambda: os.killpg(running.pid, signal.SIGINT),
        "precaudit": running.kill,
        "shell": running.kill,
        "both": lambda: os.killpg(running.pid, signal.SIGKILL),
    }
    sent.get(way, lambda: None)()


def session_ends(leader: int) -> None:
    """Waits until nobody of this session is left; what precaudit's death left training ends by itself."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            os.killpg(leader, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)


def look(way: str, here: Path, environment: dict[str, str], done: int, moment: int) -> list[str]:
    """What is wrong with what a run has left."""
    wrong = []
    for path in (here / ".precaudit").rglob("*.json"):
        try:
            json.loads(path.read_text())
        except ValueError as error:
            wrong.append(f"{path.name} does not parse: {error}")
    precaudit = [sys.executable, "-m", "precaudit", "report"]
    latest = here / ".precaudit" / "latest" / "report.json"
    left = sorted((here / ".precaudit" / "runs").glob("*-*"))
    named = [] if latest.exists() else [str(path.relative_to(here)) for path in left[:1]]
    if not latest.exists():
        told = subprocess.run(precaudit, cwd=here, env=environment, capture_output=True, text=True).stderr
        if not named or f'"precaudit report {named[0]}"' not in told:
            wrong.append(f"the next command does not offer what is left: {told.strip()[-200:]!r}")
    shown = subprocess.run(
        [*precaudit, *named, "--output-format", "json"], cwd=here, env=environment, capture_output=True, text=True
    )
    try:
        report = json.loads(shown.stdout)
    except ValueError:
        return [*wrong, f"no report: {shown.stderr.strip()[-200:]!r}"]
    kept, notes = report["coverage"]["steps"], " · ".join(report["coverage"]["notes"])
    if kept < (moment + 1 if way in ("disk", "runs") else done):
        wrong.append(f"{done} steps ended, {kept} are in the report; notes: {notes[-300:]}")
    true = {
        "child": "ended by SIGKILL", "memory": "exit code 1", "disk": "could not be written",
        "precaudit": "precaudit was ended before", "both": "precaudit was ended before",
        "interrupt": "ended", "terminate": "ended by SIGTERM",
    }  # fmt: skip
    if way in true and true[way] not in notes:
        wrong.append(f"its reason is not told: {notes[-300:]!r}")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
