"""Soft actor-critic on a one-step task: two critics, a learned temperature, three optimizers."""

import copy
import math

import torch
import torch.nn.functional as F
from torch import nn


def network(inputs, outputs):
    return nn.Sequential(nn.Linear(inputs, 32), nn.ReLU(), nn.Linear(32, outputs))


class Agent:
    def __init__(self):
        self.actor, self.critic = network(3, 2), network(4, 2)
        self.target = copy.deepcopy(self.critic).requires_grad_(False)
        self.log_alpha = torch.tensor(math.log(0.1), requires_grad=True)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=5e-3)
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), lr=1e-2)
        self.alpha_optimizer = torch.optim.Adam([self.log_alpha], lr=5e-3)

    def act(self, states):
        mean, spread = self.actor(states).chunk(2, dim=-1)
        spread = spread.clamp(-4, 1).exp()
        raw = mean + spread * torch.randn_like(mean)
        action = torch.tanh(raw)
        density = -0.5 * ((raw - mean) / spread).square() - spread.log() - torch.log(1 - action.square() + 1e-4)
        return action, density.squeeze(-1)

    def learn(self, states, actions, rewards):
        value = self.critic(torch.cat([states, actions], dim=-1))
        critic_loss = F.mse_loss(value, rewards[:, None].expand(-1, 2))
        self.critic_optimizer.zero_grad()
        critic_loss.backward()
        self.critic_optimizer.step()
        new, density = self.act(states)
        best = self.critic(torch.cat([states, new], dim=-1)).amin(dim=-1)
        actor_loss = (self.log_alpha.exp().detach() * density - best).mean()
        self.actor_optimizer.zero_grad()
        actor_loss.backward()
        self.actor_optimizer.step()
        alpha_loss = -(self.log_alpha * (density.detach() - 1)).mean()
        self.alpha_optimizer.zero_grad()
        alpha_loss.backward()
        self.alpha_optimizer.step()
        with torch.no_grad():
            for mine, theirs in zip(self.target.parameters(), self.critic.parameters()):
                mine.lerp_(theirs, 0.05)
        return critic_loss.item()


def main():
    torch.manual_seed(0)
    agent = Agent()
    states = torch.randn(128, 3)
    for step in range(12):
        with torch.no_grad():
            actions, _ = agent.act(states)
        rewards = -(actions[:, 0] - torch.tanh(states[:, 0])).square()
        print(f"step {step} loss {agent.learn(states, actions, rewards):.4f}")


if __name__ == "__main__":
    main()
