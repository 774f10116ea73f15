"""Face-like classes with an additive angular margin: cosines in float32, the backbone under bfloat16 autocast."""

import torch
import torch.nn.functional as F
from torch import nn


class Margin(nn.Module):
    def __init__(self, width, classes, scale=16.0, margin=0.2):
        super().__init__()
        self.centres = nn.Parameter(torch.randn(classes, width) * 0.1)
        self.scale, self.margin = scale, margin

    def forward(self, features, labels):
        cosine = F.normalize(features.float(), dim=-1) @ F.normalize(self.centres, dim=-1).t()
        angle = torch.acos(cosine.clamp(-0.999, 0.999))
        rows = torch.arange(len(labels))
        moved = angle.clone()
        moved[rows, labels] = angle[rows, labels] + self.margin
        return F.cross_entropy(self.scale * torch.cos(moved), labels)


def train(backbone, head, x, labels, steps=12):
    groups = [{"params": backbone.parameters()}, {"params": head.parameters(), "lr": 5e-2}]
    optimizer = torch.optim.SGD(groups, lr=2e-2, momentum=0.9)
    for step in range(steps):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features = backbone(x)
        loss = head(features, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step} loss {loss.item():.4f}")


def main():
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(20, 64), nn.PReLU(), nn.Linear(64, 16))
    labels = torch.arange(120) % 6
    x = torch.randn(6, 20)[labels] + 0.5 * torch.randn(120, 20)
    train(backbone, Margin(16, 6), x, labels)


if __name__ == "__main__":
    main()
