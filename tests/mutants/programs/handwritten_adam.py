"""A regression trained by an Adam of its own, with float32 moments and bias correction."""

import torch
from torch import nn


class Adam(torch.optim.Optimizer):
    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["step"] = torch.zeros((), dtype=torch.float32)
                    state["exp_avg"] = torch.zeros_like(p, dtype=torch.float32)
                    state["exp_avg_sq"] = torch.zeros_like(p, dtype=torch.float32)
                state["step"] += 1
                m, v = state["exp_avg"], state["exp_avg_sq"]
                grad = p.grad.float()
                m.mul_(beta1).add_(grad, alpha=1 - beta1)
                v.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
                t = state["step"].item()
                denom = (v / (1 - beta2**t)).sqrt().add_(group["eps"])
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.addcdiv_(m / (1 - beta1**t), denom, value=-group["lr"])


def main():
    torch.manual_seed(0)
    inputs = torch.randn(64, 10)
    targets = torch.sin(inputs @ torch.randn(10, 2))
    net = nn.Sequential(nn.Linear(10, 48), nn.Tanh(), nn.Linear(48, 2))
    optimizer = Adam(net.parameters(), lr=1e-2, weight_decay=0.01)
    criterion = nn.SmoothL1Loss()
    best = float("inf")
    for step in range(14):
        optimizer.zero_grad()
        prediction = net(inputs)
        loss = criterion(prediction, targets)
        loss.backward()
        optimizer.step()
        best = min(best, loss.item())
        print(f"step {step} loss {loss.item():.4f} best {best:.4f}")


if __name__ == "__main__":
    main()
