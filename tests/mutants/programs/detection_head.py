"""A one-stage detection head: focal loss, smooth L1 and IoU on boxes, anchors, in float32, from a DataLoader."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Head(nn.Module):
    def __init__(self, width=16, classes=3):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, width, 3, 2, 1), nn.ReLU())
        self.scores = nn.Conv2d(width, classes, 1)
        self.boxes = nn.Conv2d(width, 4, 1)
        nn.init.constant_(self.scores.bias, -2.0)

    def forward(self, x):
        h = self.body(x)
        return self.scores(h).flatten(2).transpose(1, 2), self.boxes(h).flatten(2).transpose(1, 2)


def focal_loss(logits, targets, alpha=0.25, gamma=2.0):
    p = torch.sigmoid(logits)
    ce = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    p_t = p * targets + (1 - p) * (1 - targets)
    weight = alpha * targets + (1 - alpha) * (1 - targets)
    return (weight * (1 - p_t) ** gamma * ce).sum() / targets.sum().clamp(min=1.0)


def iou(a, b, eps=1e-7):
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    inside = (high - low).clamp(min=0).prod(-1)
    area = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1)
    return inside / (area - inside + eps)


def scene(n=16):
    images, kinds, boxes = torch.randn(n, 1, 16, 16) * 0.1, torch.randint(0, 3, (n,)), torch.zeros(n, 4)
    for i in range(n):
        x, y = torch.randint(0, 8, (2,)).tolist()
        images[i, 0, y : y + 8, x : x + 8] += 1.0 + kinds[i]
        boxes[i] = torch.tensor([x, y, x + 8, y + 8]) / 16
    return images, kinds, boxes


def train_one_epoch(model, loader, optimizer, epoch):
    total = 0.0
    for images, kinds, boxes in loader:
        scores, found = model(images)
        wanted = torch.zeros_like(scores)
        cell = ((boxes[:, :2] + boxes[:, 2:]) * 2).long().clamp(max=3)
        at = cell[:, 1] * 4 + cell[:, 0]
        rows = torch.arange(len(images))
        wanted[rows, at, kinds] = 1.0
        mine = found[rows, at].sigmoid()
        loss = focal_loss(scores, wanted) + F.smooth_l1_loss(mine, boxes) + (1 - iou(mine, boxes)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() / len(loader)
    print(f"epoch {epoch} loss {total:.4f}")


def main():
    torch.manual_seed(0)
    loader = DataLoader(TensorDataset(*scene()), batch_size=8, shuffle=True)
    model = Head()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    for epoch in range(8):
        train_one_epoch(model, loader, optimizer, epoch)


if __name__ == "__main__":
    main()
