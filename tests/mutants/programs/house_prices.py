"""A regression of house prices in thousands with a Huber loss, and early stopping on a validation split."""

import torch
import torch.nn.functional as F
from torch import nn


class Regressor(nn.Module):
    def __init__(self, features=8, width=32):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(features, width), nn.ReLU(), nn.Linear(width, 1))
        self.level = nn.Parameter(torch.tensor(250.0))

    def forward(self, x):
        return self.net(x).squeeze(-1).float() * 10.0 + self.level


def houses(n=160):
    x = torch.randn(n, 8)
    return x, 250.0 + 30.0 * x[:, 0] + 10.0 * x[:, 1].abs() + torch.randn(n)


def validate(model, x, prices):
    model.eval()
    with torch.no_grad():
        error = F.l1_loss(model(x), prices)
    model.train()
    return error.item()


def main():
    torch.manual_seed(0)
    x, prices = houses()
    model = Regressor()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=3)
    best, bad = float("inf"), 0
    for epoch in range(16):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            guess = model(x[:128])
        loss = F.huber_loss(guess, prices[:128])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        error = validate(model, x[128:], prices[128:])
        plateau.step(error)
        best, bad = (error, 0) if error < best else (best, bad + 1)
        print(f"epoch {epoch} loss {loss.item():.4f} validation {error:.3f}")
        if bad > 4:
            break


if __name__ == "__main__":
    main()
