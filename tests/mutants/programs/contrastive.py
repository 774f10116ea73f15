"""Contrastive learning of two views with a momentum encoder, a queue and a learned temperature, under autocast."""

import copy

import torch
import torch.nn.functional as F
from torch import nn


class Encoder(nn.Module):
    def __init__(self, width=32, out=16):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(20, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, out))

    def forward(self, x):
        return self.net(x)


def info_nce(query, key, queue, log_scale):
    query, key = F.normalize(query.float(), dim=-1), F.normalize(key.float(), dim=-1)
    positive = (query * key).sum(-1, keepdim=True)
    negative = query @ queue.t()
    logits = torch.cat([positive, negative], dim=1) * log_scale.exp()
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long))


@torch.no_grad()
def momentum_update(slow, fast, momentum=0.99):
    for p_slow, p_fast in zip(slow.parameters(), fast.parameters()):
        p_slow.data = p_slow.data * momentum + p_fast.data * (1 - momentum)


def main():
    torch.manual_seed(0)
    encoder = Encoder()
    slow = copy.deepcopy(encoder).requires_grad_(False)
    log_scale = nn.Parameter(torch.tensor(1.5))
    optimizer = torch.optim.SGD([*encoder.parameters(), log_scale], lr=0.02, momentum=0.9)
    queue = F.normalize(torch.randn(64, 16), dim=-1)
    items = torch.randn(32, 20)
    for step in range(14):
        first, second = items + 0.1 * torch.randn(32, 20), items + 0.1 * torch.randn(32, 20)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            query = encoder(first)
            with torch.no_grad():
                key = slow(second)
        loss = info_nce(query, key, queue, log_scale)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        momentum_update(slow, encoder)
        print(f"step {step} loss {loss.item():.4f} temperature {log_scale.exp().item():.3f}")


if __name__ == "__main__":
    main()
