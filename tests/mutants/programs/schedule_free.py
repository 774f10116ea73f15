"""Schedule-free AdamW on a small regression with bfloat16 autocast, evaluated at the averaged point."""

# needs: schedulefree

import schedulefree
import torch
import torch.nn.functional as F
from torch import nn


def main():
    torch.manual_seed(0)
    x = torch.randn(96, 8)
    y = torch.stack([x[:, 0] * x[:, 1], x[:, 2].sin()], dim=1)
    net = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 2))
    optimizer = schedulefree.AdamWScheduleFree(net.parameters(), lr=1e-2, warmup_steps=2)
    for step in range(12):
        net.train()
        optimizer.train()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            guess = net(x)
        loss = F.mse_loss(guess.float(), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        optimizer.eval()
        with torch.no_grad():
            tested = F.mse_loss(net(x), y)
        print(f"step {step} loss {loss.item():.4f} averaged {tested.item():.4f}")


if __name__ == "__main__":
    main()
