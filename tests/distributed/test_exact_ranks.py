"""The exact step of several ranks: companions of what is added up over them, against one run in float64."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_ranks import CLIP, WORLD, batch, loss_of, model

ROOT = Path(__file__).parents[2]
NEAR = 1e-9
KINDS = ["ddp", "ddp, bfloat16", "by hand", "fsdp2", "fsdp2, clipped", "deepspeed 1", "deepspeed 2", "deepspeed 3"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Of each rank what it kept of each kind; one pair of processes trains all."""
    folder = tmp_path_factory.mktemp("ranks")
    script = Path(__file__).with_name("exact_ranks.py")
    paths = os.pathsep.join([str(ROOT), str(script.parent), str(ROOT / "tests")])
    environment = {**os.environ, "PYTHONPATH": paths, "WORLD_SIZE": str(WORLD), "PRECAUDIT_DISABLE": "1"}
    environment.update(OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu", CUDA_VISIBLE_DEVICES="")
    environment["TORCH_EXTENSIONS_DIR"] = str(folder)
    words = [sys.executable, str(script), str(folder), *KINDS]
    ranks = [
        subprocess.Popen(words, env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(WORLD)
    ]
    assert [one.wait(900) for one in ranks] == [0] * WORLD
    return [torch.load(folder / f"kept-{rank}.pt") for rank in range(WORLD)]


def whole(ranks: list[dict[str, Any]], part: str, kind: str) -> list[torch.Tensor]:
    """The tensors of all ranks together, one for each parameter of the model."""
    if kind.startswith("fsdp2"):
        return [torch.cat(shards) for shards in zip(*(rank[part] for rank in ranks), strict=True)]
    if kind.startswith("deepspeed"):
        return parted([rank[part][0] for rank in ranks], kind)
    return list(ranks[0][part])


def parted(flats: list[torch.Tensor], kind: str) -> list[torch.Tensor]:
    """The parameters in DeepSpeed's flat partitions: of all of them together, or of each."""
    shapes = [p.shape for p in model().parameters()]
    sizes = [shape.numel() for shape in shapes]
    if kind == "deepspeed 3":
        split = zip(*(flat.split([-(-size // WORLD) for size in sizes]) for flat in flats), strict=True)
        return [torch.cat(shards)[: shape.numel()].view(shape) for shards, shape in zip(split, shapes, strict=True)]
    pieces = torch.cat(flats)[: sum(sizes)].split(sizes)
    return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]


def begun(ranks: list[dict[str, Any]], kind: str) -> list[dict[str, torch.Tensor]]:
    """The optimizer's state of each parameter when the step began, in float64."""
    flat = {
        name: whole([{"one": [one[name] for one in rank["before"]]} for rank in ranks], "one", kind)
        for name in ("exp_avg", "exp_avg_sq")
    }
    step = ranks[0]["before"][0]["step"]
    return [
        {"step": step.clone(), "exp_avg": first.double(), "exp_avg_sq": second.double()}
        for first, second in zip(flat["exp_avg"], flat["exp_avg_sq"], strict=True)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_companions_of_two_ranks_are_one_run_in_float64(kind: str, trained: list[dict[str, Any]]) -> None:
    ranks = [rank[kind] for rank in trained]
    for mine in ranks:
        assert all(torch.equal(a, b) for a, b in zip(mine["end"], mine["plain"], strict=True))
        assert mine["notes"] == []
        assert (mine["content"]["followed"], mine["content"]["not_followed"]) == (1.0, {})
    net = model().double()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    start = [one.double() for one in whole(ranks, "start", kind)]
    for p, first, state in zip(net.parameters(), start, begun(ranks, kind), strict=True):
        p.data = first.clone()  # weights that are copied from masters begin as these
        optimizer.state[p] = state
    for rank in range(WORLD):
        (loss_of(net, batch(rank, 1).double()) / WORLD).backward()  # a cast of the batch passes through, too
    if "clipped" in kind:
        torch.nn.utils.clip_grad_norm_(net.parameters(), CLIP)
    for found, p in zip(whole(ranks, "gradients", kind), net.parameters(), strict=True):
        assert float((found - p.grad).norm() / p.grad.norm()) < NEAR
    optimizer.step()
    for found, p, first in zip(whole(ranks, "weights", kind), net.parameters(), start, strict=True):
        assert float(((found - first) - (p.detach() - first)).norm() / (p.detach() - first).norm()) < NEAR
    gradients = [line for line in ranks[0]["content"]["budget"] if line["what"] == "gradient"]
    assert all(set(line["split"]) == {"forward", "backward", "reduction"} for line in gradients)
    assert max(line["split"]["reduction"] for line in gradients) < (1e-6 if kind in ("ddp", "by hand") else 0.01)
