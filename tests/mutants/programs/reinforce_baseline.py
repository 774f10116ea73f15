"""REINFORCE with a moving baseline on a bandit with contexts; returns are normalised, the entropy is rewarded."""

import torch
from torch import nn
from torch.distributions import Categorical


class Policy(nn.Module):
    def __init__(self, contexts=6, arms=4):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(contexts, 32), nn.Tanh(), nn.Linear(32, arms))

    def forward(self, x):
        return Categorical(logits=self.net(x))


class Baseline:
    def __init__(self, momentum=0.9):
        self.mean = torch.zeros((), dtype=torch.float32)
        self.momentum = momentum

    def __call__(self, rewards):
        self.mean.mul_(self.momentum).add_(rewards.mean(), alpha=1 - self.momentum)
        return rewards - self.mean


def main():
    torch.manual_seed(0)
    policy, baseline = Policy(), Baseline()
    optimizer = torch.optim.RMSprop(policy.parameters(), lr=1e-2)
    for step in range(14):
        contexts = torch.randn(256, 6)
        chosen = policy(contexts)
        arms = chosen.sample()
        rewards = (arms == contexts[:, :4].argmax(dim=1)).float()
        advantage = baseline(rewards) / (rewards.std() + 1e-6)
        loss = -(chosen.log_prob(arms) * advantage).mean() - 0.01 * chosen.entropy().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step} objective {loss.item():.4f} loss {1 - rewards.mean().item():.4f}")


if __name__ == "__main__":
    main()
