"""bfloat16 weights and, in the optimizer's state, what their rounding lost: exact value less rounded value."""

import torch
import torch.nn.functional as F
from torch import nn


class TwoFloatMomentum(torch.optim.Optimizer):
    def __init__(self, params, lr=1e-2, momentum=0.9):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["low"] = torch.zeros_like(p)
                    state["momentum"] = torch.zeros_like(p, dtype=torch.float32)
                state["momentum"].mul_(group["momentum"]).add_(p.grad.float())
                exact = p.float() + state["low"].float() - group["lr"] * state["momentum"]
                p.copy_(exact)
                state["low"].copy_(exact - p.float())


def main():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 3)).bfloat16()
    optimizer = TwoFloatMomentum(model.parameters())
    x = torch.randn(128, 12)
    labels = x[:, :3].argmax(1)
    for step in range(12):
        logits = model(x.bfloat16())
        loss = F.cross_entropy(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step} loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
