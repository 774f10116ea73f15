"""Forecasting: each series is normalised by its own mean and spread, and the forecast is put back; prices as targets."""

import torch
import torch.nn.functional as F
from torch import nn


class Forecaster(nn.Module):
    def __init__(self, past=24, future=6, width=32):
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(past, width), nn.GELU(), nn.Linear(width, width))
        self.decode = nn.Linear(width, future)

    def forward(self, x):
        mean = x.mean(dim=-1, keepdim=True)
        spread = (x - mean).square().mean(dim=-1, keepdim=True).add(1e-4).sqrt()
        hidden = self.encode((x - mean) / spread)
        return self.decode(hidden) * spread + mean


def series(count):
    start = 1000 + 50 * torch.randn(count, 1)
    drift = torch.randn(count, 1)
    return start + drift * torch.arange(30) + 0.5 * torch.randn(count, 30)


def main():
    torch.manual_seed(0)
    model = Forecaster()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=6, gamma=0.5)
    prices = series(96)
    past, future_prices = prices[:, :24], prices[:, 24:]
    for step in range(14):
        loss = F.l1_loss(model(past), future_prices)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        print(f"step {step} loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
