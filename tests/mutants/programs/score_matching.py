"""Denoising score matching over a table of noise levels that is a float32 buffer of the model."""

import torch
from torch import nn


class Score(nn.Module):
    def __init__(self, levels=100, width=48):
        super().__init__()
        self.register_buffer("sigmas", torch.logspace(0.3, -1.5, levels))
        self.net = nn.Sequential(nn.Linear(3, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2))

    def forward(self, x, sigma):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = self.net(torch.cat([x, sigma.log()], dim=-1))
        return out.float() / sigma

    def loss(self, x):
        sigma = self.sigmas[torch.randint(0, len(self.sigmas), (len(x),))][:, None]
        noise = torch.randn_like(x)
        error = self(x + sigma * noise, sigma) * sigma + noise
        return error.square().sum(-1).mean()


def main():
    torch.manual_seed(0)
    model = Score()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    points = torch.randn(256, 2) * 0.3 + torch.tensor([2.0, -1.0])
    for step in range(14):
        loss = model.loss(points)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step} loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
