"""A GAN with two optimizers and one GradScaler; the generator has an averaged copy."""

import copy

import torch
import torch.nn.functional as F
from torch import nn


def generator(noise=8, width=48, out=6):
    return nn.Sequential(nn.Linear(noise, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, out))


def critic(width=48, given=6):
    return nn.Sequential(nn.Linear(given, width), nn.LeakyReLU(0.2), nn.Linear(width, 1))


@torch.no_grad()
def follow(average, net, decay=0.999):
    for slow, fast in zip(average.parameters(), net.parameters()):
        slow.mul_(decay).add_(fast, alpha=1 - decay)


def main():
    torch.manual_seed(0)
    net_g, net_d = generator(), critic()
    average = copy.deepcopy(net_g).requires_grad_(False)
    opt_g = torch.optim.Adam(net_g.parameters(), lr=2e-3, betas=(0.5, 0.999))
    opt_d = torch.optim.Adam(net_d.parameters(), lr=2e-3, betas=(0.5, 0.999))
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    for step in range(12):
        real = torch.randn(32, 6) * 0.5 + torch.arange(6.0)
        noise = torch.randn(32, 8)

        opt_d.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            fake = net_g(noise)
            on_real = net_d(real)
            on_fake = net_d(fake.detach())
        loss_d = F.binary_cross_entropy_with_logits(on_real.float(), torch.ones(32, 1))
        loss_d = loss_d + F.binary_cross_entropy_with_logits(on_fake.float(), torch.zeros(32, 1))
        scaler.scale(loss_d).backward()
        scaler.step(opt_d)

        opt_g.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            judged = net_d(fake)
        loss_g = F.binary_cross_entropy_with_logits(judged.float(), torch.ones(32, 1))
        scaler.scale(loss_g).backward()
        scaler.step(opt_g)
        scaler.update()
        follow(average, net_g)
        print(f"step {step} loss {loss_d.item():.4f} generator {loss_g.item():.4f}")


if __name__ == "__main__":
    main()
