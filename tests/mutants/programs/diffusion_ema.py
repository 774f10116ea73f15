"""A denoising diffusion model: a cosine schedule, timestep embeddings, averaged weights and bfloat16 autocast."""

import copy
import math

import torch
import torch.nn.functional as F
from torch import nn


def timestep_embedding(t, width=16):
    half = width // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half)
    angles = t.float()[:, None] * frequencies[None]
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class Denoiser(nn.Module):
    def __init__(self, data=6, width=64):
        super().__init__()
        self.enter = nn.Linear(data + 16, width)
        self.norm = nn.LayerNorm(width)
        self.middle = nn.Linear(width, width)
        self.leave = nn.Linear(width, data)

    def forward(self, x, t):
        h = F.silu(self.enter(torch.cat([x, timestep_embedding(t)], dim=-1)))
        h = h + F.silu(self.middle(self.norm(h)))
        return self.leave(h)


class EMA:
    def __init__(self, model, decay=0.995):
        self.decay = decay
        self.shadow = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model):
        for name, p in model.named_parameters():
            self.shadow[name].lerp_(p.detach(), 1 - self.decay)


def main():
    torch.manual_seed(0)
    model = Denoiser()
    teacher = copy.deepcopy(model).requires_grad_(False)
    average = EMA(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=1e-4)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float32)
    alphas_cumprod = torch.cumprod(1.0 - betas, dim=0)
    x0 = torch.randn(64, 6).sign()
    for step in range(14):
        noise, t = torch.randn_like(x0), torch.randint(0, 1000, (64,))
        keep = alphas_cumprod[t].unsqueeze(1)
        noisy = keep.sqrt() * x0 + (1 - keep).sqrt() * noise
        with torch.autocast("cpu", dtype=torch.bfloat16):
            guess = model(noisy, t)
        loss = F.mse_loss(guess.float(), noise)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update(model)
        print(f"step {step} loss {loss.item():.4f}")
    drift = sum((p - q).abs().sum() for p, q in zip(model.parameters(), teacher.parameters()))
    print(f"moved {drift.item():.3f}")


if __name__ == "__main__":
    main()
