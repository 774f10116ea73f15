"""Data-parallel training of one rank with gloo: DDP, no_sync over two micro-batches, a DistributedSampler, autocast."""

import contextlib
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


def build():
    return nn.Sequential(nn.Linear(14, 48), nn.GELU(), nn.LayerNorm(48), nn.Linear(48, 4))


def train(rank, world):
    torch.manual_seed(0)
    x = torch.randn(128, 14)
    data = TensorDataset(x, x[:, :4].argmax(dim=1))
    sampler = DistributedSampler(data, num_replicas=world, rank=rank)
    loader = DataLoader(data, batch_size=16, sampler=sampler)
    model = DDP(build())
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    accumulate = 2
    for epoch in range(4):
        sampler.set_epoch(epoch)
        for index, (inputs, labels) in enumerate(loader):
            last = (index + 1) % accumulate == 0
            with contextlib.nullcontext() if last else model.no_sync():
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    logits = model(inputs)
                loss = F.cross_entropy(logits.float(), labels) / accumulate
                loss.backward()
            if last:
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
        print(f"epoch {epoch} loss {loss.item() * accumulate:.4f}")


def main():
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=(Path(folder) / "store").as_uri(), rank=0, world_size=1)
        train(dist.get_rank(), dist.get_world_size())
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
