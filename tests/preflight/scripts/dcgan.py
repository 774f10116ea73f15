"""DCGAN as pytorch/examples has it, with autocast: `wrong` takes the losses of probabilities made in half precision."""

import sys

import torch
import torch.nn.functional as F
from torch import nn

WRONG = sys.argv[1:] == ["wrong"]


def init(m: nn.Module) -> None:
    if "Conv" in type(m).__name__:
        torch.nn.init.normal_(m.weight, 0.0, 0.02)
    elif "BatchNorm" in type(m).__name__:
        torch.nn.init.normal_(m.weight, 1.0, 0.02)
        torch.nn.init.zeros_(m.bias)


def main() -> None:
    torch.manual_seed(0)
    device = torch.accelerator.current_accelerator()
    up = [nn.ConvTranspose2d(8, 16, 4, 1, 0, bias=False), nn.BatchNorm2d(16), nn.ReLU(True)]
    netG = nn.Sequential(*up, nn.ConvTranspose2d(16, 3, 4, 2, 1, bias=False), nn.Tanh()).to(device)
    down = [nn.Conv2d(3, 16, 4, 2, 1, bias=False), nn.BatchNorm2d(16), nn.LeakyReLU(0.2, inplace=True)]
    netD = nn.Sequential(*down, nn.Conv2d(16, 1, 4, 1, 0, bias=False)).to(device)
    netG.apply(init)
    netD.apply(init)
    if WRONG:
        netD.half()
    optimizerD = torch.optim.Adam(netD.parameters(), lr=2e-4, betas=(0.5, 0.999))
    optimizerG = torch.optim.Adam(netG.parameters(), lr=2e-4, betas=(0.5, 0.999))
    for _ in range(5):
        netD.zero_grad()
        real = torch.rand(8, 3, 8, 8).to(device)
        label = torch.full((8,), 1.0, device=device)
        noise = torch.randn(8, 8, 1, 1, device=device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=not WRONG):
            fake = netG(noise)
            on_real = netD(real.half() if WRONG else real).view(-1)
            on_fake = netD(fake.detach().half() if WRONG else fake.detach()).view(-1)
            loss_d = F.binary_cross_entropy_with_logits(on_real.float(), label)
            loss_d = loss_d + F.binary_cross_entropy_with_logits(on_fake.float(), torch.zeros_like(label))
        loss_d.backward()
        optimizerD.step()
        netG.zero_grad()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=not WRONG):
            judged = netD(fake.half() if WRONG else fake).view(-1)
            loss_g = F.binary_cross_entropy_with_logits(judged.float(), label)
        loss_g.backward()
        optimizerG.step()


main()
