"""An actor and a critic on a toy task: generalised advantages from the end of the rollout, running observation statistics."""

import torch
import torch.nn.functional as F
from torch import nn

STEPS, ENVIRONMENTS = 24, 8


class RunningStatistics:
    def __init__(self, width):
        self.mean = torch.zeros(width)
        self.square = torch.ones(width)

    def update(self, x, rate=0.05):
        self.mean = (1 - rate) * self.mean + rate * x.mean(0)
        self.square = (1 - rate) * self.square + rate * x.square().mean(0)

    def apply(self, x):
        return (x - self.mean) / (self.square - self.mean.square()).clamp(min=1e-2).sqrt()


class ActorCritic(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, width), nn.Tanh())
        self.actor, self.critic = nn.Linear(width, 2), nn.Linear(width, 1)

    def forward(self, x):
        hidden = self.trunk(x)
        return self.actor(hidden), self.critic(hidden).squeeze(-1)


def advantages(rewards, values, discount=0.95, mix=0.9):
    found = torch.zeros_like(rewards)
    last = torch.zeros_like(rewards[0])
    for t in reversed(range(len(rewards))):
        error = rewards[t] + discount * values[t + 1] - values[t]
        last = error + discount * mix * last
        found[t] = last
    return found


def main():
    torch.manual_seed(0)
    model, statistics = ActorCritic(), RunningStatistics(4)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(12):
        observed = torch.randn(STEPS, ENVIRONMENTS, 4) * 2 + 1
        statistics.update(observed.flatten(0, 1))
        x = statistics.apply(observed)
        with torch.no_grad():
            logits, values = model(x)
            actions = torch.distributions.Categorical(logits=logits.float()).sample()
            rewards = (actions == (x[..., 0] > 0)).float()
            gained = advantages(rewards, torch.cat([values, values[-1:]]))
            returns = gained + values
        logits, values = model(x)
        chosen = F.log_softmax(logits.float(), dim=-1).gather(-1, actions[..., None]).squeeze(-1)
        loss = -(gained * chosen).mean() + 0.5 * F.mse_loss(values, returns)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step} loss {1 - rewards.mean().item():.4f}")


if __name__ == "__main__":
    main()
