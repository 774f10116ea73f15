"""Trains with two forked gloo ranks in many uneven ways, one after another; each rank writes what it computed.

`python uneven.py FOLDER [WAY...]` leaves `FOLDER/WAY-RANK.txt`, one line per step: all losses and weights, bit by bit.
Exits with 1 where a rank did not end with 0.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel


def net(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(8, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 1))


def micro_batches(way: str, rank: int, step: int) -> int:
    if way == "uneven-accumulation":
        return 2 + 2 * rank
    if way == "ragged-accumulation":
        return 1 + (step + rank) % 3
    return 1


def steps(way: str, rank: int, step: int) -> bool:
    """Whether this rank's optimizer steps now."""
    if rank == 0:
        return True
    return step % 3 == 0 if way == "seldom-steps" else way not in ("never-steps", "never-steps-and-logs")


def train(way: str, rank: int, out: Path) -> None:
    torch.manual_seed(1)
    data = torch.Generator().manual_seed(rank)
    model = DistributedDataParallel(net(16))
    kind = {"params": model.parameters(), "lr": 0.01}
    if way == "zero":
        optimizer: torch.optim.Optimizer = ZeroRedundancyOptimizer(**kind, optimizer_class=torch.optim.AdamW)
    else:
        optimizer = torch.optim.AdamW(**kind)
    critic = DistributedDataParallel(nn.Linear(1, 1)) if way == "gan" else None
    second = torch.optim.SGD(critic.parameters(), lr=0.01, momentum=0.9) if critic else None
    for step in range(40 if way.startswith("never") else 12):
        losses = []
        count = micro_batches(way, rank, step)
        for micro in range(count):
            with model.no_sync() if micro < count - 1 else contextlib.nullcontext():
                made = model(torch.randn(4, 8, generator=data))
                loss = critic(made).square().mean() if critic and step % 5 == 4 else made.square().mean()
                loss.backward()
            losses.append(loss.detach())
        if way.endswith("logs"):
            dist.all_reduce(losses[0])
        if steps(way, rank, step):
            optimizer.step()
        optimizer.zero_grad()
        if critic and second:
            critic(made.detach()).sub(1).square().mean().backward()
            second.step()
            second.zero_grad()
        if way == "logs-after":
            dist.all_reduce(losses[-1])
        with out.open("a") as file:
            values = torch.cat([torch.stack(losses), *(p.detach().flatten() for p in model.parameters())])
            file.write(f"{step} {values.numpy().tobytes().hex()}\n")


def work(way: str, rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/{way}.store", rank=rank, world_size=2)
    train(way, rank, folder / f"{way}-{rank}.txt")
    dist.barrier()
    dist.destroy_process_group()


WAYS = (
    "even", "uneven-accumulation", "ragged-accumulation", "seldom-steps", "never-steps", "never-steps-and-logs",
    "logs", "logs-after", "gan", "zero",
)  # fmt: skip


def main() -> None:
    folder = Path(sys.argv[1]).resolve()
    failed = []
    for way in sys.argv[2:] or WAYS:
        context = torch.multiprocessing.get_context("fork")
        ranks = [context.Process(target=work, args=(way, rank, folder)) for rank in range(2)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        failed += [f"{way} {process.exitcode}" for process in ranks if process.exitcode]
    print("failed:", ", ".join(failed) or "none")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
