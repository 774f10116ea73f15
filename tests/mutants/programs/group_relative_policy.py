"""Group-relative policy optimisation of a tiny language model: advantages over groups, a clipped ratio."""

import torch
import torch.nn.functional as F
from torch import nn

VOCABULARY, GROUP, LENGTH = 12, 8, 5


class Policy(nn.Module):
    def __init__(self, width=24):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.cell = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, tokens):
        return self.head(self.cell(self.embed(tokens))[0])


def log_probabilities(policy, tokens):
    logits = policy(tokens[:, :-1])
    return F.log_softmax(logits.float(), dim=-1).gather(-1, tokens[:, 1:, None]).squeeze(-1)


@torch.no_grad()
def rollout(policy, prompts):
    tokens = prompts.repeat_interleave(GROUP, 0)
    for _ in range(LENGTH):
        probabilities = torch.softmax(policy(tokens)[:, -1].float(), dim=-1)
        tokens = torch.cat([tokens, torch.multinomial(probabilities, 1)], dim=1)
    return tokens


def group_advantages(rewards):
    groups = rewards.view(-1, GROUP)
    mean = groups.mean(1, keepdim=True)
    spread = groups.var(1, keepdim=True, unbiased=False).sqrt()
    return ((groups - mean) / (spread + 1e-4)).view(-1, 1)


def main():
    torch.manual_seed(0)
    policy = Policy()
    optimizer = torch.optim.Adam(policy.parameters(), lr=2e-2)
    prompts = torch.randint(0, VOCABULARY, (6, 1))
    for step in range(10):
        tokens = rollout(policy, prompts)
        rewards = (tokens[:, 1:] == 3).float().mean(1)
        advantage = group_advantages(rewards)
        old = log_probabilities(policy, tokens).detach()
        for _ in range(2):
            ratio = torch.exp(log_probabilities(policy, tokens) - old)
            clipped = ratio.clamp(0.8, 1.2)
            objective = -torch.minimum(ratio * advantage, clipped * advantage).mean()
            optimizer.zero_grad()
            objective.backward()
            optimizer.step()
        print(f"step {step} loss {1 - rewards.mean().item():.4f}")


if __name__ == "__main__":
    main()
