"""A physics-informed network for the heat equation, in float64: second derivatives, LBFGS after Adam."""

import torch
from torch import nn

torch.set_default_dtype(torch.float64)


class Field(nn.Module):
    def __init__(self, width=24):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))

    def forward(self, x, t):
        return self.net(torch.stack([x, t], dim=-1)).squeeze(-1)


def residual(field, x, t):
    x, t = x.requires_grad_(True), t.requires_grad_(True)
    u = field(x, t)
    u_x, u_t = torch.autograd.grad(u.sum(), (x, t), create_graph=True)
    (u_xx,) = torch.autograd.grad(u_x.sum(), x, create_graph=True)
    return u_t - 0.1 * u_xx


def objective(field, points):
    x, t = points
    inside = residual(field, x.clone(), t.clone()).square().mean()
    start = (field(x, torch.zeros_like(x)) - torch.sin(torch.pi * x)).square().mean()
    edge = field(torch.zeros_like(t), t).square().mean() + field(torch.ones_like(t), t).square().mean()
    return inside + 10 * start + 10 * edge


def main():
    torch.manual_seed(0)
    field = Field()
    points = torch.rand(2, 128)
    adam = torch.optim.Adam(field.parameters(), lr=1e-2)
    for step in range(8):
        adam.zero_grad()
        loss = objective(field, points)
        loss.backward()
        adam.step()
        print(f"step {step} loss {loss.item():.4f}")
    lbfgs = torch.optim.LBFGS(field.parameters(), lr=0.5, max_iter=4, line_search_fn="strong_wolfe")

    def closure():
        lbfgs.zero_grad()
        loss = objective(field, points)
        loss.backward()
        return loss

    for step in range(3):
        loss = lbfgs.step(closure)
        print(f"refined {step} loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
