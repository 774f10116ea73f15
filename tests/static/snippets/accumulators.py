import torch
from torch import nn


def running_loss(loader, model):
    total = torch.zeros(1, dtype=torch.float16)  # expect: PA304
    for x in loader:
        loss = model(x).float().mean()
        total += loss.detach()
    return total


def moving_average(loader, model):
    average = torch.tensor(0.0, dtype=torch.bfloat16)  # expect: PA304
    for x in loader:
        loss = model(x).float().mean().detach()
        average = 0.99 * average + 0.01 * loss.to(torch.bfloat16)
    return average


class Meter:
    def __init__(self):
        self.sum = torch.zeros((), dtype=torch.bfloat16)  # expect: PA304
        self.count = 0

    def update(self, value, n):
        self.sum += value * n
        self.count += n


class Normaliser(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.register_buffer("mean", torch.zeros(n, dtype=torch.bfloat16))  # expect: PA304

    @torch.no_grad()
    def update(self, x):
        self.mean.lerp_(x.mean(0), 0.01)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 4).bfloat16(), nn.Linear(4, 4).bfloat16()])

    def forward(self, x):
        h = torch.zeros_like(x, dtype=torch.bfloat16)
        for block in self.blocks:
            h += block(x)
        return h


def gradient_buffers(model, loader):
    buffers = [torch.zeros(p.shape, dtype=torch.bfloat16) for p in model.parameters()]  # expect: PA208
    for x in loader:
        model(x).sum().backward()
        for b, p in zip(buffers, model.parameters(), strict=False):
            b.add_(p.grad)
            p.grad = None


def float32_total(loader, model):
    total = torch.zeros((), dtype=torch.float32)
    for x in loader:
        total += model(x).bfloat16().mean()
    return total
