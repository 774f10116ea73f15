"""Sharpness-aware minimisation by hand: climb along the gradient, take the gradient there, climb down, step."""

import torch
import torch.nn.functional as F
from torch import nn


@torch.no_grad()
def climb(parameters, radius=0.05):
    norm = torch.stack([p.grad.norm() for p in parameters]).norm()
    moves = [p.grad * (radius / (norm + 1e-6)) for p in parameters]
    for p, move in zip(parameters, moves):
        p.add_(move)
    return moves


def main():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(1, 8, 3, padding=1), nn.BatchNorm1d(8), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3))
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=5e-2, momentum=0.9)
    x = torch.randn(96, 1, 12)
    labels = torch.stack([x[:, 0, :4].sum(1), x[:, 0, 4:8].sum(1), x[:, 0, 8:].sum(1)], 1).argmax(1)
    for step in range(10):
        loss = F.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        moves = climb(parameters)
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        with torch.no_grad():
            for p, move in zip(parameters, moves):
                p.sub_(move)
        optimizer.step()
        print(f"step {step} loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
