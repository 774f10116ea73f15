"""Self-distillation without labels: a momentum teacher, sharpened and centred by a running mean, bfloat16 autocast."""

import copy

import torch
import torch.nn.functional as F
from torch import nn


class Encoder(nn.Module):
    def __init__(self, width=48, out=24):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(16, width), nn.GELU(), nn.Linear(width, out))

    def forward(self, x):
        return self.layers(x)


class Distillation:
    def __init__(self, student):
        self.student = student
        self.teacher = copy.deepcopy(student).requires_grad_(False)
        self.center = torch.zeros(24)

    @torch.no_grad()
    def targets(self, x):
        logits = self.teacher(x)
        probabilities = torch.softmax((logits - self.center) / 0.2, dim=-1)
        self.center = 0.9 * self.center + 0.1 * logits.mean(0)
        return probabilities

    @torch.no_grad()
    def follow(self, rate=0.02):
        for mine, theirs in zip(self.teacher.parameters(), self.student.parameters()):
            mine.lerp_(theirs, rate)


def main():
    torch.manual_seed(0)
    student = Encoder()
    pair = Distillation(student)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
    base = torch.randn(64, 16)
    for step in range(12):
        views = [base + 0.2 * torch.randn_like(base) for _ in range(2)]
        target = pair.targets(views[0])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = student(views[1])
        loss = -(target * F.log_softmax(logits.float() / 0.4, dim=-1)).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        pair.follow()
        print(f"step {step} loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
