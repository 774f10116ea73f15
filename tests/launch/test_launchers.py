"""Every launcher that people type, in front of its training and behind it: traced, and as it is without the trace."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from desk import Desk

TRAIN = """
import os, sys, __main__
import torch, torch.distributed as dist

def work(rank, world):
    dist.init_process_group("gloo", rank=rank, world_size=world)
    torch.manual_seed(0)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 4).to(torch.bfloat16))
    optimizer = torch.optim.AdamW(model.parameters())
    losses = []
    for step in range(5):
        loss = model(torch.full((2, 4), rank + 1.0, dtype=torch.bfloat16)).float().square().sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item().hex())
    with open(f"rank-{rank}.txt", "w") as file:
        script = getattr(__main__, "__file__", "spawned")
        print(sys.argv, __name__, os.path.basename(script), losses, file=file)
    dist.barrier()
    dist.destroy_process_group()
    if "fail" in sys.argv:
        raise ValueError(f"rank {rank}")

if __name__ == "__main__":
    if "RANK" in os.environ:
        work(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    else:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=A_FREE_ONE)
        torch.multiprocessing.spawn(work, (2,), 2)
"""

TORCHRUN = ("torchrun", "--nproc-per-node", "2")
DISTRIBUTED_RUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2")
# Without a GPU accelerate starts several processes only where it is told that there are some.
ACCELERATE = (
    "accelerate", "launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
    "--main_process_port", "A_FREE_ONE",
    "--mixed_precision", "no", "--dynamo_backend", "no",
)  # fmt: skip
DEEPSPEED = ("deepspeed", "--num_gpus", "2", "--master_port", "A_FREE_ONE")
SRUN = ("bash", "srun.sh")
BASH = ("bash", "run.sh")

SCRIPTS = {
    # Each rank in a shell of its own, as `srun bash wrapper.sh` has them.
    "srun.sh": 'for rank in 0 1; do bash -c "export RANK=$rank WORLD_SIZE=2; python $*" & done; wait -n && wait -n\n',
    "run.sh": "set -e\nexport STAGE=1\npython -m torch.distributed.run --nproc-per-node 2 $*\n",
}

EVERY = [
    pytest.param(TORCHRUN, id="torchrun", marks=pytest.mark.slow),
    pytest.param(DISTRIBUTED_RUN, id="torch.distributed.run", marks=pytest.mark.slow),
    pytest.param(ACCELERATE, id="accelerate", marks=pytest.mark.slow),
    pytest.param(DEEPSPEED, id="deepspeed", marks=pytest.mark.slow),
    pytest.param((), id="spawn", marks=pytest.mark.slow),
    pytest.param(SRUN, id="srun"),
    pytest.param(BASH, id="bash", marks=pytest.mark.slow),
]


LOGGED = re.compile(r"\[\d{4}-\d\d-\d\d [\d:,]+\] \[[A-Z]+\] ")


@dataclass(frozen=True)
class Done:
    """What a command did."""

    code: int
    stdout: str
    ranks: tuple[str, ...]
    """What each rank wrote at its end."""
    stderr: str = field(compare=False)


@pytest.fixture
def hall(real_desk: Desk, monkeypatch: pytest.MonkeyPatch, free_port: int) -> Desk:
    """A desk with the training script, the shell scripts, and this environment's programs on PATH."""
    real_desk.write("train.py", TRAIN.replace("A_FREE_ONE", repr(str(free_port))))
    for name, text in SCRIPTS.items():
        real_desk.write(name, text)
    monkeypatch.setenv("PATH", f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port))
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    return real_desk


def command(launcher: Sequence[str], *arguments: str) -> list[str]:
    words = [*(launcher or [sys.executable]), "train.py", *arguments]
    return [os.environ["MASTER_PORT"] if word == "A_FREE_ONE" else word for word in words]


def written(desk: Desk) -> tuple[str, ...]:
    """What the ranks wrote, taken away for the next run."""
    files = sorted(desk.folder.glob("rank-*.txt"))
    texts = tuple(file.read_text() for file in files)
    for file in files:
        file.unlink()
    return texts


def untraced(desk: Desk, launcher: Sequence[str], *arguments: str) -> Done:
    done = subprocess.run(command(launcher, *arguments), capture_output=True, text=True, check=False, timeout=500)
    return Done(done.returncode, said(done.stdout), written(desk), done.stderr)


def traced(desk: Desk, launcher: Sequence[str], *arguments: str) -> Done:
    seen = desk.precaudit("trace", "--keep-going", "--fail-on", "never", *command(launcher, *arguments))
    state = next(finding for finding in seen.report["findings"] if finding["rule"] == "PA301")
    assert (state["path"], state["ranks"]) == ("train.py", [0, 1])
    assert seen.report["coverage"]["rank_ids"] == [0, 1]
    assert [
        note for note in seen.report["coverage"]["notes"] if not note.startswith(("trace", command(launcher)[0]))
    ] == []
    return Done(seen.code, said(seen.stdout), written(desk), seen.stderr)


def said(stdout: str) -> str:
    """Without deepspeed's own log, which has the time of day and process ids in it."""
    return "".join(line for line in stdout.splitlines(keepends=True) if not LOGGED.match(line))


@pytest.mark.parametrize("launcher", EVERY)
def test_a_launcher_in_front_of_the_training_does_what_it_does_without_us(hall: Desk, launcher: Sequence[str]) -> None:
    bare = untraced(hall, launcher, "--lr", "1")
    assert (bare.code, len(bare.ranks)) == (0, 2), bare.stderr
    seen = traced(hall, launcher, "--lr", "1")
    assert seen == bare, seen.stderr


@pytest.mark.parametrize("launcher", EVERY)
def test_a_launcher_is_stopped_with_one_report_and_no_failure(hall: Desk, launcher: Sequence[str]) -> None:
    seen = hall.precaudit("trace", *command(launcher))
    assert (seen.code, seen.report["exit_code"]) == (1, 0), seen.stderr
    assert (seen.report["coverage"]["ranks"], seen.report["coverage"]["stopped"]) == (2, 2)
    assert written(hall) == ()
    for word in ("closed by peer", "Traceback", "ChildFailedError"):
        assert word not in seen.stderr


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [pytest.param(TORCHRUN, id="torchrun"), pytest.param((), id="spawn")])
def test_a_failure_after_the_window_keeps_its_code_and_traceback(hall: Desk, launcher: Sequence[str]) -> None:
    bare = untraced(hall, launcher, "fail")
    seen = hall.precaudit("trace", "--keep-going", *command(launcher, "fail"))
    assert seen.code == bare.code != 0
    assert "ValueError: rank" in seen.stderr
    assert "_precaudit" not in seen.stderr
    assert seen.report["exit_code"] == bare.code


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param((*TORCHRUN, "-m", "precaudit.run"), id="torchrun"),
        pytest.param((*ACCELERATE, "-m", "precaudit.run"), id="accelerate"),
        pytest.param((*DEEPSPEED, "--module", "precaudit.run"), id="deepspeed"),
    ],
)
def test_behind_a_launcher_without_injection_the_ranks_report_to_the_parent(
    hall: Desk, launcher: Sequence[str]
) -> None:
    seen = hall.precaudit("trace", "--no-inject", *command(launcher))
    assert (seen.code, seen.report["exit_code"]) == (1, 0), seen.stderr
    assert (seen.report["coverage"]["ranks"], seen.report["coverage"]["stopped"]) == (2, 2)


WORKERS = """
import sys, torch
class Numbers(torch.utils.data.Dataset):
    def __len__(self):
        return 64
    def __getitem__(self, index):
        ours = [type(m).__name__ for m in torch.utils._python_dispatch._get_current_dispatch_mode_stack()]
        return torch.full((4,), float(index)), len(ours)
def main():
    how = sys.argv[1]
    model = torch.nn.Linear(4, 4).to(torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters())
    loader = torch.utils.data.DataLoader(Numbers(), 4, num_workers=2, multiprocessing_context=how)
    for epoch in range(2):
        for batch, modes in loader:
            assert not modes.any(), modes
            model(batch.bfloat16()).float().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    print("trained")
if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize(
    "how", ["fork", pytest.param("spawn", marks=pytest.mark.slow), pytest.param("forkserver", marks=pytest.mark.slow)]
)
def test_data_loader_workers_write_nothing(real_desk: Desk, how: str) -> None:
    real_desk.write("train.py", WORKERS)
    kept = real_desk.precaudit("trace", "--keep-going", "train.py", how)
    assert (kept.code, kept.stdout) == (1, "trained\n"), kept.stderr
    cover = kept.report["coverage"]
    assert (cover["ranks"], cover["notes"]) == (1, [])
    stopped = real_desk.precaudit("trace", "train.py", how)
    assert (stopped.code, stopped.stdout) == (1, "")
    assert "Traceback" not in stopped.stderr
    deadline = time.monotonic() + 20
    while running(real_desk) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert running(real_desk) == []


def running(desk: Desk) -> list[str]:
    """The command lines of processes that name this desk; those of a forkserver do."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            lines.append(path.read_text(errors="replace"))
    return [line for line in lines if str(desk.folder) in line]
