"""A Wasserstein GAN with gradient penalty in float32: the critic steps three times, the generator is averaged."""

import torch
from torch import nn


class Pair:
    def __init__(self):
        self.generator = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 5))
        self.critic = nn.Sequential(nn.Linear(5, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
        self.slow = [p.detach().clone() for p in self.generator.parameters()]
        self.opt_g = torch.optim.Adam(self.generator.parameters(), lr=5e-3, betas=(0.0, 0.9))
        self.opt_c = torch.optim.Adam(self.critic.parameters(), lr=5e-3, betas=(0.0, 0.9))

    def penalty(self, real, fake):
        mix = torch.rand(len(real), 1)
        between = (mix * real + (1 - mix) * fake).requires_grad_(True)
        (slope,) = torch.autograd.grad(self.critic(between).sum(), between, create_graph=True)
        return (slope.norm(2, dim=1) - 1).pow(2).mean()

    def critic_step(self, real):
        fake = self.generator(torch.randn(len(real), 4)).detach()
        distance = self.critic(real).mean() - self.critic(fake).mean()
        loss = -distance + 10 * self.penalty(real, fake)
        self.opt_c.zero_grad()
        loss.backward()
        self.opt_c.step()
        return distance.item()

    def generator_step(self, count):
        loss = -self.critic(self.generator(torch.randn(count, 4))).mean()
        self.opt_g.zero_grad()
        loss.backward()
        self.opt_g.step()
        with torch.no_grad():
            for slow, fast in zip(self.slow, self.generator.parameters()):
                slow.mul_(0.99).add_(fast, alpha=0.01)


def main():
    torch.manual_seed(0)
    pair = Pair()
    for step in range(14):
        real = torch.randn(64, 5) * 0.3 + torch.tensor([3.0, -2.0, 1.0, 0.0, 2.0])
        for _ in range(3):
            pair.critic_step(real)
        pair.generator_step(64)
        with torch.no_grad():
            off = (pair.generator(torch.randn(256, 4)).mean(0) - real.mean(0)).norm().item()
        print(f"step {step} loss {off:.4f}")


if __name__ == "__main__":
    main()
