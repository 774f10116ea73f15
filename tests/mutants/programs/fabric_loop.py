"""Lightning Fabric with bf16-mixed precision around a plain loop."""

# needs: lightning

import logging

import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(2, 16, 3, padding=1)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        return self.head(F.relu(self.conv(x)).mean(dim=-1))


def main():
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    torch.manual_seed(0)
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    x = torch.randn(64, 2, 12)
    y = (x[:, 0].mean(-1) > 0).long() + (x[:, 1].mean(-1) > 0).long()
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-2)
    model, optimizer = fabric.setup(net, optimizer)
    for step in range(12):
        logits = model(x)
        loss = F.cross_entropy(logits.float(), y)
        optimizer.zero_grad()
        fabric.backward(loss)
        fabric.clip_gradients(model, optimizer, max_norm=1.0)
        optimizer.step()
        print(f"step {step} loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
