"""Flow matching on two moons: velocity regression, Fourier features of time, EMA by AveragedModel, bfloat16 autocast."""

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class Velocity(nn.Module):
    def __init__(self, width=64, bands=8):
        super().__init__()
        self.register_buffer("frequencies", 2 * math.pi * torch.arange(1, bands + 1, dtype=torch.float32))
        self.net = nn.Sequential(nn.Linear(2 + 2 * bands, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.out = nn.Linear(width, 2)

    def forward(self, x, t):
        angles = t.float()[:, None] * self.frequencies
        return self.out(self.net(torch.cat([x, angles.sin(), angles.cos()], dim=-1)))


def moons(n):
    angle = torch.rand(n) * math.pi
    side = torch.randint(0, 2, (n,)).float()
    x = torch.stack([angle.cos() + side, angle.sin() * (1 - 2 * side)], dim=1)
    return 2 * x + 0.05 * torch.randn(n, 2)


def main():
    torch.manual_seed(0)
    model = Velocity()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(16):
        x1, x0, t = moons(256), torch.randn(256, 2), torch.rand(256)
        xt = torch.lerp(x0, x1, t[:, None])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            velocity = model(xt, t)
        loss = F.mse_loss(velocity.float(), x1 - x0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average.update_parameters(model)
        print(f"step {step} loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
