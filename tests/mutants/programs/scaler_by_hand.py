"""A float16 network with float32 masters and a dynamic loss scale written by hand."""

import torch
import torch.nn.functional as F
from torch import nn


class DynamicLossScale:
    def __init__(self, scale=2.0**10, window=100):
        self.scale, self.window, self.good = scale, window, 0

    def update(self, overflow):
        self.good = 0 if overflow else self.good + 1
        if overflow:
            self.scale /= 2
        elif self.good % self.window == 0:
            self.scale *= 2


def main():
    torch.manual_seed(0)
    x = torch.randn(64, 10)
    y = x[:, :3].argmax(dim=1)
    net = nn.Sequential(nn.Linear(10, 40), nn.ReLU(), nn.Linear(40, 3)).half()
    masters = [p.detach().clone().float().requires_grad_(True) for p in net.parameters()]
    optimizer = torch.optim.Adam(masters, lr=1e-2)
    scale = DynamicLossScale()
    for step in range(12):
        logits = net(x.half())
        loss = F.cross_entropy(logits.float(), y)
        net.zero_grad()
        (loss * scale.scale).backward()
        overflow = False
        for master, p in zip(masters, net.parameters()):
            master.grad = p.grad.float() / scale.scale
            overflow |= not bool(master.grad.isfinite().all())
        if not overflow:
            torch.nn.utils.clip_grad_norm_(masters, 1.0)
            optimizer.step()
            with torch.no_grad():
                for master, p in zip(masters, net.parameters()):
                    p.copy_(master)
        scale.update(overflow)
        print(f"step {step} loss {loss.item():.4f} scale {scale.scale:.0f}")


if __name__ == "__main__":
    main()
