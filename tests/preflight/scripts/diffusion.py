"""A diffusion U-Net with averaged weights, bfloat16 autocast and checkpointed blocks; `wrong` holds all in bfloat16."""

import copy
import math
import sys

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

WRONG = sys.argv[1:] == ["wrong"]
STEPS = 1000


class Residual(nn.Module):
    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.first, self.second = nn.GroupNorm(4, inside), nn.GroupNorm(4, outside)
        self.into, self.out = nn.Conv2d(inside, outside, 3, padding=1), nn.Conv2d(outside, outside, 3, padding=1)
        self.time, self.skip = nn.Linear(32, outside), nn.Conv2d(inside, outside, 1)

    def inner(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        h = self.into(F.silu(self.first(x))) + self.time(F.silu(time))[:, :, None, None]
        return self.skip(x) + self.out(F.silu(self.second(h)))

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return checkpoint(self.inner, x, time, use_reentrant=False)


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 32))
        self.enter, self.leave = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 3, 3, padding=1)
        self.down, self.up = Residual(16, 32), Residual(48, 16)
        self.norm, self.attend = nn.GroupNorm(4, 32), nn.MultiheadAttention(32, 4, batch_first=True)
        self.register_buffer("rates", torch.exp(-math.log(1e4) * torch.arange(8) / 8), persistent=False)

    def forward(self, x: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        angles = step[:, None].float() * self.rates.float()
        time = self.time(torch.cat([angles.sin(), angles.cos()], -1).to(self.enter.weight.dtype))
        wide = self.enter(x)
        h = self.down(F.avg_pool2d(wide, 2), time)
        flat = self.norm(h).flatten(2).transpose(1, 2)
        h = h + self.attend(flat, flat, flat, need_weights=False)[0].transpose(1, 2).view_as(h)
        h = torch.cat([F.interpolate(h, scale_factor=2), wide], 1)
        return self.leave(self.up(h, time))


def main() -> None:
    torch.manual_seed(0)
    device = torch.device("cuda")
    model = UNet().to(device)
    if WRONG:
        model.to(torch.bfloat16)
    averaged = copy.deepcopy(model).requires_grad_(False)
    betas = torch.linspace(1e-4, 0.02, STEPS, device=device)
    alphas = torch.cumprod(1 - betas, 0)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    for _ in range(5):
        images, step = torch.randn(4, 3, 8, 8, device=device), torch.randint(0, STEPS, (4,), device=device)
        noise, kept = torch.randn_like(images), alphas[step][:, None, None, None]
        noisy = kept.sqrt() * images + (1 - kept).sqrt() * noise
        with torch.autocast("cuda", torch.bfloat16, enabled=not WRONG):
            guess = model(noisy.bfloat16() if WRONG else noisy, step)
        loss = F.mse_loss(guess.float(), noise)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for slow, fast in zip(averaged.parameters(), model.parameters(), strict=True):
                slow.lerp_(fast, 1e-3)


main()
