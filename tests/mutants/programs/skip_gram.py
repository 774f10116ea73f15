"""Word vectors with negative sampling: sparse tables and SparseAdam."""

import torch
import torch.nn.functional as F
from torch import nn


class SkipGram(nn.Module):
    def __init__(self, words=40, width=16):
        super().__init__()
        self.centre = nn.Embedding(words, width, sparse=True)
        self.context = nn.Embedding(words, width, sparse=True)

    def forward(self, centre, context, negative):
        here = self.centre(centre)
        near = (here * self.context(context)).sum(dim=-1)
        far = (here[:, None] * self.context(negative)).sum(dim=-1)
        return -(F.logsigmoid(near).mean() + F.logsigmoid(-far).mean())


def pairs(count=256):
    centre = torch.randint(0, 40, (count,))
    return centre, (centre + torch.randint(1, 3, (count,))) % 40, torch.randint(0, 40, (count, 4))


def main():
    torch.manual_seed(0)
    model = SkipGram()
    optimizer = torch.optim.SparseAdam(list(model.parameters()), lr=5e-2)
    batch = pairs()
    for step in range(10):
        loss = model(*batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step} loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
