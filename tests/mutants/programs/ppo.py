"""Proximal policy optimisation on a toy environment, in float32: advantages, ratios and running observation statistics."""

import torch
import torch.nn.functional as F
from torch import nn


class RunningMeanStd(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.register_buffer("mean", torch.zeros(width, dtype=torch.float32))
        self.register_buffer("var", torch.ones(width, dtype=torch.float32))
        self.register_buffer("count", torch.tensor(1e-4, dtype=torch.float32))

    @torch.no_grad()
    def update(self, x):
        delta = x.mean(0) - self.mean
        total = self.count + len(x)
        self.mean += delta * len(x) / total
        self.var.copy_((self.var * self.count + x.var(0) * len(x)) / total)
        self.count += len(x)

    def forward(self, x):
        return (x - self.mean) / torch.sqrt(self.var + 1e-8)


class ActorCritic(nn.Module):
    def __init__(self, observed=6, actions=3, width=32):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(observed, width), nn.Tanh())
        self.policy = nn.Linear(width, actions)
        self.value = nn.Linear(width, 1)

    def forward(self, x):
        h = self.body(x)
        return self.policy(h), self.value(h).squeeze(-1)


def returns_of(rewards, values, gamma=0.99, lam=0.95):
    advantages = torch.zeros_like(rewards)
    last = torch.zeros(rewards.shape[1])
    for t in reversed(range(len(rewards))):
        after = values[t + 1] if t + 1 < len(values) else torch.zeros(rewards.shape[1])
        delta = rewards[t] + gamma * after - values[t]
        last = delta + gamma * lam * last
        advantages[t] = last
    return advantages, advantages + values


def main():
    torch.manual_seed(0)
    model, normalise = ActorCritic(), RunningMeanStd(6)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, eps=1e-5)
    states = torch.randn(8, 16, 6) * 2 + 1
    for round_ in range(8):
        normalise.update(states.flatten(0, 1))
        seen = normalise(states)
        with torch.no_grad():
            logits, values = model(seen)
            log_probs = F.log_softmax(logits, dim=-1)
            actions = torch.multinomial(log_probs.exp().flatten(0, 1), 1).view(8, 16)
            old = log_probs.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
            rewards = (actions == states[..., :3].argmax(-1)).float()
            advantages, returns = returns_of(rewards, values)
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        for _ in range(2):
            logits, values = model(seen)
            log_probs = F.log_softmax(logits, dim=-1)
            new = log_probs.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
            ratio = torch.exp(new - old)
            clipped = ratio.clamp(0.8, 1.2)
            policy_loss = -torch.min(ratio * advantages, clipped * advantages).mean()
            value_loss = F.mse_loss(values, returns)
            entropy = -(log_probs.exp() * log_probs).sum(-1).mean()
            loss = policy_loss + 0.5 * value_loss - 0.01 * entropy
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
        print(f"step {round_} loss {1 - rewards.mean().item():.4f} value {value_loss.item():.4f}")


if __name__ == "__main__":
    main()
