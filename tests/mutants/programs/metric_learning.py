"""Metric learning with hard triplets: pairwise distances in float32, an embedding under float16 autocast and a scaler."""

import torch
import torch.nn.functional as F
from torch import nn


class Embed(nn.Module):
    def __init__(self, width=32, out=8):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(16, width), nn.PReLU(), nn.Linear(width, out))

    def forward(self, x):
        return F.normalize(self.layers(x).float(), dim=-1, eps=1e-6)


def hard_triplets(vectors, labels, margin=0.3):
    distances = torch.cdist(vectors, vectors)
    same = labels[:, None] == labels[None, :]
    farthest = distances.masked_fill(~same, 0.0).amax(dim=1)
    nearest = distances.masked_fill(same, float("inf")).amin(dim=1)
    return F.relu(farthest - nearest + margin).mean()


class Run:
    def __init__(self):
        self.model = Embed()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-2)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=50)

    def step(self, x, labels):
        with torch.autocast("cpu", dtype=torch.float16):
            vectors = self.model(x)
        loss = hard_triplets(vectors, labels)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.item()


def main():
    torch.manual_seed(0)
    centres = torch.randn(4, 16)
    labels = torch.arange(48) % 4
    x = centres[labels] + 0.8 * torch.randn(48, 16)
    run = Run()
    for step in range(12):
        print(f"step {step} loss {run.step(x, labels):.4f}")


if __name__ == "__main__":
    main()
