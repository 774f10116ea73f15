"""A normalising flow of affine coupling layers, trained by exact likelihood."""

import math

import torch
from torch import nn


class Coupling(nn.Module):
    def __init__(self, flip):
        super().__init__()
        self.flip = flip
        self.net = nn.Sequential(nn.Linear(1, 24), nn.Tanh(), nn.Linear(24, 2))

    def forward(self, x):
        kept, moved = (x[:, 1:], x[:, :1]) if self.flip else (x[:, :1], x[:, 1:])
        scale, shift = self.net(kept).chunk(2, dim=-1)
        scale = torch.tanh(scale)
        moved = moved * torch.exp(scale) + shift
        joined = (moved, kept) if self.flip else (kept, moved)
        return torch.cat(joined, dim=-1), scale.sum(-1)


class Flow(nn.Module):
    def __init__(self, layers=4):
        super().__init__()
        self.layers = nn.ModuleList(Coupling(i % 2 == 1) for i in range(layers))

    def forward(self, x):
        volume = 0.0
        for layer in self.layers:
            x, more = layer(x)
            volume = volume + more
        density = -0.5 * x.square().sum(-1) - math.log(2 * math.pi)
        return density + volume


def fit(flow, data, steps=14):
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    for step in range(steps):
        loss = -flow(data).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(flow.parameters(), 5.0)
        optimizer.step()
        print(f"step {step} loss {loss.item():.4f}")


def main():
    torch.manual_seed(0)
    angle = torch.rand(256) * math.pi
    moons = torch.stack([angle.cos(), angle.sin()], -1) * 2 + 0.1 * torch.randn(256, 2)
    fit(Flow(), moons)


if __name__ == "__main__":
    main()
