"""Segmentation of rare pixels: a focal and a dice loss in float32 on logits of a float16 network, running class counts."""

import torch
import torch.nn.functional as F
from torch import nn


class Head(nn.Module):
    def __init__(self, width=12):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.GroupNorm(3, width), nn.ReLU(), nn.Conv2d(width, 1, 1)
        )

    def forward(self, x):
        return self.layers(x).squeeze(1)


def focal(logits, wanted, power=2.0):
    plain = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    return ((1 - torch.exp(-plain)) ** power * plain).mean()


def dice(logits, wanted):
    chances = torch.sigmoid(logits)
    shared = (chances * wanted).sum(dim=(1, 2))
    return (1 - (2 * shared + 1) / (chances.sum(dim=(1, 2)) + wanted.sum(dim=(1, 2)) + 1)).mean()


def main():
    torch.manual_seed(0)
    model = Head()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    seen = torch.zeros(2, dtype=torch.float32)
    images = torch.randn(24, 1, 10, 10)
    wanted = (images[:, 0] > 1.2).float()
    for step in range(12):
        with torch.autocast("cpu", dtype=torch.float16):
            logits = model(images)
        loss = focal(logits.float(), wanted) + dice(logits.float(), wanted)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        seen += torch.stack([wanted.sum(), (1 - wanted).sum()])
        print(f"step {step} loss {loss.item():.4f} seen {seen.tolist()}")


if __name__ == "__main__":
    main()
