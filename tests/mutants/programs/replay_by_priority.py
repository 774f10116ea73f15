"""Q-learning from a prioritised buffer, importance weights in the loss, a target network that follows softly."""

import copy

import torch
import torch.nn.functional as F
from torch import nn


class Buffer:
    def __init__(self, size=256):
        self.states, self.next = torch.randn(size, 4), torch.randn(size, 4)
        self.actions = torch.randint(0, 2, (size, 1))
        self.rewards = (self.actions[:, 0] == (self.states[:, 0] > 0)).float()
        self.priorities = torch.ones(size)

    def sample(self, count=64):
        shares = self.priorities**0.6
        shares = shares / shares.sum()
        picked = torch.multinomial(shares, count, replacement=True)
        weights = (len(shares) * shares[picked]) ** -0.4
        return picked, weights / weights.max()


def main():
    torch.manual_seed(0)
    q = nn.Sequential(nn.Linear(4, 48), nn.ReLU(), nn.Linear(48, 2))
    target = copy.deepcopy(q).requires_grad_(False)
    optimizer = torch.optim.Adam(q.parameters(), lr=1e-2)
    buffer = Buffer()
    for step in range(14):
        picked, weights = buffer.sample()
        with torch.no_grad():
            wanted = buffer.rewards[picked] + 0.5 * target(buffer.next[picked]).amax(1)
        values = q(buffer.states[picked]).gather(1, buffer.actions[picked]).squeeze(1)
        errors = F.smooth_l1_loss(values, wanted, reduction="none")
        loss = (weights * errors).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        buffer.priorities[picked] = (values.detach() - wanted).abs() + 1e-3
        with torch.no_grad():
            for mine, theirs in zip(target.parameters(), q.parameters()):
                mine.mul_(0.9).add_(theirs, alpha=0.1)
        print(f"step {step} loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
