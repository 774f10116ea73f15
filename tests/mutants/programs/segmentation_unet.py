"""A small U-Net for segmentation: GroupNorm, a Dice loss beside cross-entropy, bfloat16 autocast, metrics."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class DoubleConv(nn.Module):
    def __init__(self, inside, out):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(inside, out, 3, padding=1), nn.GroupNorm(2, out), nn.SiLU(), nn.Conv2d(out, out, 3, padding=1)
        )

    def forward(self, x):
        return self.net(x)


class UNet(nn.Module):
    def __init__(self, classes=3, width=8):
        super().__init__()
        self.down = DoubleConv(1, width)
        self.middle = DoubleConv(width, width)
        self.up = nn.ConvTranspose2d(width, width, 2, stride=2)
        self.last = DoubleConv(2 * width, width)
        self.out = nn.Conv2d(width, classes, 1)

    def forward(self, x):
        skip = self.down(x)
        h = self.up(self.middle(F.max_pool2d(skip, 2)))
        return self.out(self.last(torch.cat([h, skip], dim=1)))


def dice_loss(logits, target, eps=1e-6):
    probabilities = F.softmax(logits.float(), dim=1)
    wanted = F.one_hot(target, logits.shape[1]).permute(0, 3, 1, 2).float()
    overlap = (probabilities * wanted).sum(dim=(0, 2, 3))
    size = probabilities.sum(dim=(0, 2, 3)) + wanted.sum(dim=(0, 2, 3))
    return 1 - (2 * overlap / (size + eps)).mean()


class Metrics:
    def __init__(self):
        self.hits = torch.zeros((), dtype=torch.float32)
        self.count = torch.zeros((), dtype=torch.float32)

    def update(self, logits, target):
        self.hits += (logits.argmax(1) == target).sum()
        self.count += target.numel()

    def accuracy(self):
        return (self.hits / self.count).item()


def main():
    torch.manual_seed(0)
    images = torch.randn(8, 1, 16, 16).cumsum(dim=2) / 4
    masks = (images[:, 0] > 0.3).long() + (images[:, 0] > -0.3).long()
    net = UNet()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=12)
    metrics = Metrics()
    for epoch in range(12):
        net.train()
        optimizer.zero_grad()
        with torch.autocast(device_type="cpu", dtype=torch.bfloat16):
            output = net(images)
        loss = F.cross_entropy(output.float(), masks) + dice_loss(output, masks)
        loss.backward()
        optimizer.step()
        scheduler.step()
        metrics.update(output.detach(), masks)
        print(f"epoch {epoch} loss {loss.item():.4f} accuracy {metrics.accuracy():.3f}")


if __name__ == "__main__":
    main()
