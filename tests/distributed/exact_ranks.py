"""One rank of a training with the exact step, which keeps the companions that it had; run by test_exact_ranks.py."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from precaudit.runtime import session as sessions
from precaudit.runtime import torch_private as private
from precaudit.runtime.events import StepBegan, StepEnded
from precaudit.runtime.exact.step import ExactStep

WORLD = 2
BF16 = torch.bfloat16
CLIP = 0.01


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.LayerNorm(16), nn.Linear(16, 4))


def batch(rank: int, number: int) -> Tensor:
    generator = torch.Generator().manual_seed(10 * number + rank)
    return torch.randn(6, 8, generator=generator)


def loss_of(net: nn.Module, x: Tensor) -> Tensor:
    y = net(x)
    return (y.float() if y.dtype is BF16 else y).square().mean()


def sharded() -> nn.Sequential:
    net = model()
    policy = MixedPrecisionPolicy(param_dtype=BF16, reduce_dtype=BF16)
    for layer in (net[0], net[2]):
        fully_shard(layer, mp_policy=policy)
    return fully_shard(net, mp_policy=policy)


class Loop:
    """A training of one kind."""

    def __init__(self, kind: str, rank: int) -> None:
        self.kind, self.rank = kind, rank
        self.engine: Any = None
        if kind.startswith("deepspeed"):
            import deepspeed_recipes

            self.net = model()
            optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-2)
            config = {
                "train_micro_batch_size_per_gpu": 6,
                "bf16": {"enabled": True},
                "gradient_clipping": 0.0,
                "zero_optimization": {"stage": int(kind[-1]), "reduce_bucket_size": 500, "allgather_bucket_size": 500},
                "zero_allow_untested_optimizer": True,
            }
            self.engine, *_ = deepspeed_recipes.deepspeed.initialize(model=self.net, optimizer=optimizer, config=config)
            self.whole: nn.Module = self.engine
            return
        self.net = sharded() if kind.startswith("fsdp2") else model()
        self.whole = self.net
        if kind.startswith("ddp"):
            self.net = self.net.to(BF16) if "bfloat16" in kind else self.net
            self.whole = DistributedDataParallel(self.net)
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-2)

    def step(self, number: int) -> None:
        x = batch(self.rank, number)
        low = self.engine is not None or "bfloat16" in self.kind
        with torch.autocast("cpu", BF16, enabled=self.kind in ("ddp", "by hand")):
            loss = loss_of(self.whole, x.to(BF16) if low else x)
        if self.engine is not None:
            self.engine.backward(loss)
            self.engine.step()
            return
        loss.backward()
        if self.kind == "by hand":
            for p in self.net.parameters():
                assert p.grad is not None
                dist.all_reduce(p.grad)
                p.grad /= WORLD
        if "clipped" in self.kind:
            nn.utils.clip_grad_norm_(self.net.parameters(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad()


def train(kind: str, folder: Path, rank: int, traced: bool) -> dict[str, Any]:
    """What the rank kept of one training."""
    kept: dict[str, Any] = {}
    settings = {
        "skip": 1, "steps": 2, "attempts": 25, "keep_going": True, "values": "sample", "exact": True, "cwd": ".",
        "peers_folder": str(folder), "ranks_folder": None,
    }  # fmt: skip
    session = sessions.start(settings) if traced else None
    loop = Loop(kind, rank)
    step = session.parts.get(ExactStep) if session is not None else None

    def exact(tensor: Tensor) -> Tensor:
        assert step is not None, "there is a trace"
        entry = step.follower.main.find(private.local(tensor))
        assert entry is not None, "has no companion"
        assert not entry.partial, "is partial"
        return entry.view(private.local(tensor)).clone()

    def stepped(optimizer: Any) -> list[Tensor]:
        return [p for group in optimizer.param_groups for p in group["params"]]

    def began(event: StepBegan) -> None:
        if step is not None and step.following:
            held = stepped(event.optimizer)
            kept["start"] = [private.local(p).detach().clone() for p in held]
            state = event.optimizer.state
            kept["before"] = [{n: private.local(v).clone() for n, v in state[p].items()} for p in held]
            kept["gradients"] = [exact(p.grad) for p in held if p.grad is not None]

    def ended(event: StepEnded) -> None:
        if step is not None and step.following:
            kept["weights"] = [exact(p) for p in stepped(event.optimizer)]

    if session is not None:
        session.bus.on(StepBegan, began)
        session.bus.on(StepEnded, ended)
    for number in range(4):
        loop.step(number)
    kept["end"] = [private.local(p).detach().clone() for p in loop.net.parameters()]
    if session is not None and step is not None:
        kept["content"], kept["notes"] = step.content(rank), list(session.guard.notes)
        session.remove()
    return kept


def main(folder: Path, kinds: list[str]) -> None:
    """Each kind plain and with the exact step, in one process for all."""
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), WORLD), rank=rank, world_size=WORLD)
    kept = {}
    for kind in kinds:
        own = folder / kind
        own.mkdir(exist_ok=True)
        plain = train(kind, own, rank, False)
        kept[kind] = {**train(kind, own, rank, True), "plain": plain["end"]}
    torch.save(kept, folder / f"kept-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
