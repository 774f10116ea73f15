"""Ranks that train together, for real, with gloo: none is disturbed, none breaks another, none is left behind."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from desk import Desk, Result

UNEVEN = Path(__file__).parent / "uneven.py"
QUICK = ("even", "uneven-accumulation", "seldom-steps")
WAYS = (*QUICK, "gan", "zero", "ragged-accumulation", "never-steps", "never-steps-and-logs", "logs", "logs-after")
NOISE = ("Connection", "closed by peer", "ChildFailedError", "Traceback", "destroy_process_group", "leaked")


@dataclass(frozen=True)
class Run:
    """What the ranks of one run computed, and what the user saw of it."""

    computed: dict[str, str]
    """WAY-RANK -> a line per step, with the bits of all losses and weights."""
    stdout: str
    seen: Result | None = None


def plain(desk: Desk, ways: Sequence[str]) -> Run:
    folder = desk.folder / "plain"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, UNEVEN, folder, *ways], capture_output=True, text=True, check=True, timeout=500
    )
    return Run(computed(folder), done.stdout)


def traced(desk: Desk, ways: Sequence[str], *options: str) -> Run:
    folder = desk.folder / "traced"
    folder.mkdir()
    seen = desk.precaudit("trace", *options, str(UNEVEN), str(folder), *ways)
    assert left_behind(folder) == []
    assert [word for word in NOISE if word in seen.stderr] == []
    if "--keep-going" not in options:  # else it is the program that ends, as it would without us
        assert list(folder.glob("*.store")) == [], "a FileStore that is left hangs the next run"
    return Run(computed(folder), seen.stdout, seen)


def computed(folder: Path) -> dict[str, str]:
    return {path.stem: path.read_text() for path in sorted(folder.glob("*.txt"))}


def left_behind(folder: Path) -> list[str]:
    """The processes that still run on this folder."""
    commands = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_text().split("\0")
        except OSError:
            continue
        if str(folder) in command and "trace" not in command:
            commands.append(" ".join(command))
    return commands


def stops_undisturbed(desk: Desk, ways: Sequence[str]) -> Result:
    """All ranks of all ways stop, early, with code 0, and have until then computed what they compute untraced."""
    whole, stopped = plain(desk, ways), traced(desk, ways)
    assert whole.computed.keys() == stopped.computed.keys() == {f"{way}-{rank}" for way in ways for rank in (0, 1)}
    for name, lines in stopped.computed.items():
        assert whole.computed[name].startswith(lines), name
        assert len(lines) < len(whole.computed[name]), name
    assert stopped.seen is not None
    assert (stopped.seen.code, stopped.stdout) == (0, whole.stdout)
    assert stopped.seen.report["coverage"]["stopped"] == 2 * len(ways)
    return stopped.seen


def test_uneven_ranks_stop_together_and_have_computed_what_they_compute_untraced(real_desk: Desk) -> None:
    seen = stops_undisturbed(real_desk, QUICK)
    assert (seen.report["coverage"]["rank_ids"], seen.report["coverage"]["notes"]) == ([0, 1], [])


@pytest.mark.slow
def test_every_uneven_way_stops_together(real_desk: Desk) -> None:
    stops_undisturbed(real_desk, WAYS)


@pytest.mark.slow
def test_ranks_that_keep_going_compute_what_they_compute_untraced_to_the_last_bit(real_desk: Desk) -> None:
    whole, kept = plain(real_desk, WAYS), traced(real_desk, WAYS, "--keep-going")
    assert kept.computed == whole.computed
    assert kept.stdout == whole.stdout


KILLED = """
import os, signal, sys, torch, torch.distributed as dist
moment = sys.argv[1]
dist.init_process_group("gloo")
def here(name):
    if name == moment and dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 4).to(torch.bfloat16))
optimizer = torch.optim.AdamW(model.parameters())
for step in range(60):
    loss = model(torch.ones(2, 4, dtype=torch.bfloat16)).float().sum()
    here(f"forward {step}")
    loss.backward()
    here(f"backward {step}")
    optimizer.step()
    here(f"step {step}")
    optimizer.zero_grad()
"""


@pytest.mark.parametrize(
    "moment",
    [
        "forward 1",
        pytest.param("forward 0", marks=pytest.mark.slow),
        pytest.param("backward 0", marks=pytest.mark.slow),
        pytest.param("step 0", marks=pytest.mark.slow),
        pytest.param("backward 2", marks=pytest.mark.slow),
    ],
)
def test_a_rank_that_is_killed_is_named_in_a_readable_report(real_desk: Desk, moment: str) -> None:
    real_desk.write("train.py", KILLED)
    seen = real_desk.precaudit("trace", "torchrun", "--nproc-per-node", "2", "train.py", moment)
    notes = seen.report["coverage"]["notes"]
    assert seen.code != 0
    # After its last traced backward nobody needs it any more: rank 0 stops by itself. Before the first, rank 0 may not
    # have come to a backward of its own either.
    alone = moment in ("forward 0", "backward 2")
    pattern = f"rank 1 ended( first){'?' if alone else ''}, before the traced steps were over, without a word"
    assert any(re.match(pattern, note) for note in notes), notes
    if moment not in ("forward 0", "backward 0"):
        assert "PA301" in {finding["rule"] for finding in seen.report["findings"]}


ALONE_IN_FAILING = """
import sys, torch, torch.distributed as dist
dist.init_process_group("gloo")
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 4))
optimizer = torch.optim.AdamW(model.parameters())
for step in range(60):
    if step == 1 and dist.get_rank() == 1:
        raise ValueError("the data of rank 1 is bad")
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
"""


@pytest.mark.slow
def test_a_rank_that_fails_is_named_with_its_error(real_desk: Desk) -> None:
    real_desk.write("train.py", ALONE_IN_FAILING)
    seen = real_desk.precaudit("trace", "torchrun", "--nproc-per-node", "2", "train.py")
    assert (seen.code, seen.report["status"]) == (1, "script-failed")
    assert any(
        note.startswith("rank 1 ended first") and "with ValueError: the data of rank 1 is bad" in note
        for note in seen.report["coverage"]["notes"]
    )


WATCHER = """
import torch, torch.distributed as dist
dist.init_process_group("gloo")
rank = dist.get_rank()
if rank < 2:
    pair = dist.new_group([0, 1])
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 4), process_group=pair)
    optimizer = torch.optim.AdamW(model.parameters())
else:
    dist.new_group([0, 1])
for step in range(10 ** 6):
    if rank < 2:
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()
    if step % 10 == 0:
        dist.barrier()
"""


@pytest.mark.slow
def test_a_rank_that_never_trains_is_left_behind_after_a_minute_and_its_error_is_called_ours(real_desk: Desk) -> None:
    real_desk.write("train.py", WATCHER)
    seen = real_desk.precaudit("trace", "torchrun", "--nproc-per-node", "3", "train.py")
    assert seen.code == 0, seen.stderr
    notes = "\n".join(seen.report["coverage"]["notes"])
    assert "the other ranks stopped without waiting for rank 2" in notes
    assert "that is the stop, not a failure of the training" in notes


def test_the_reports_of_two_nodes_merge_and_the_first_stop_decides(real_desk: Desk) -> None:
    for node in range(2):
        folder = real_desk.folder / f"node{node}"
        folder.mkdir()
        source = real_desk.write(f"node{node}/train.py", TWO_NODES)
        assert source.exists()
    command = [sys.executable, "-m", "precaudit", "trace", "--output", "report.json", "train.py"]
    environment = {**os.environ, "WORLD_SIZE": "2", "STORE": str(real_desk.folder / "store")}
    nodes = [
        subprocess.Popen(
            command, cwd=real_desk.folder / f"node{rank}", env={**environment, "RANK": str(rank)},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        for rank in range(2)
    ]  # fmt: skip
    codes = [node.wait(300) for node in nodes]
    assert codes[0] == 0
    reports = [json.loads((real_desk.folder / f"node{n}" / "report.json").read_text()) for n in range(2)]
    assert reports[0]["coverage"]["stopped"] == 1
    both = json.loads(real_desk.precaudit("report", "node0", "node1", "--output-format", "json").stdout)
    cover = both["coverage"]
    assert (both["status"], cover["ranks"], cover["rank_ids"], cover["world_size"]) == ("clean", 2, [0, 1], 2)
    assert not any("wrote nothing here" in note for note in cover["notes"])
    if codes[1]:
        assert any(
            note.startswith(f"rank 1 ended with exit code {codes[1]} when precaudit had stopped other nodes")
            for note in cover["notes"]
        )


TWO_NODES = """
import os, torch, torch.distributed as dist
dist.init_process_group("gloo", init_method="file://" + os.environ["STORE"], rank=int(os.environ["RANK"]), world_size=2)
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 4))
optimizer = torch.optim.AdamW(model.parameters())
for step in range(60):
    model(torch.ones(2, 4)).sum().backward()
    if dist.get_rank() == 0 or step % 3 == 0:  # node 1 needs more time: node 0 stops first
        optimizer.step()
    optimizer.zero_grad()
"""


WITHOUT_COLLECTIVES = """
import sys, torch, torch.distributed as dist
def train(rank, world, store):
    if store:
        dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=world)
    else:
        dist.init_process_group("gloo")
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    for step in range(8):
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
if __name__ == "__main__":
    if sys.argv[1] == "torchrun":
        train(0, 0, "")
    elif sys.argv[2] == "1":
        train(0, 1, sys.argv[3])
    else:
        torch.multiprocessing.spawn(train, (int(sys.argv[2]), sys.argv[3]), nprocs=int(sys.argv[2]))
"""


@pytest.mark.parametrize(
    "command",
    [
        ["train.py", "by-hand", "1"],
        ["torchrun", "--nproc-per-node", "1", "train.py", "torchrun"],
        ["train.py", "spawned", "2"],
        pytest.param(["torchrun", "--nproc-per-node", "2", "train.py", "torchrun"], marks=pytest.mark.slow),
    ],
    ids=["alone", "alone-under-torchrun", "spawned", "torchrun"],
)
def test_ranks_that_need_no_other_are_never_called_killed(real_desk: Desk, command: list[str]) -> None:
    real_desk.write("train.py", WITHOUT_COLLECTIVES)
    seen = real_desk.precaudit("trace", *command, str(real_desk.folder / "store"))
    assert (seen.code, seen.report["coverage"]["notes"]) == (0, []), seen.stderr
