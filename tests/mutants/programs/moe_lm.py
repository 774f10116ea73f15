"""A mixture-of-experts language model: a float32 router, top-2 of four experts, a load-balancing loss, autocast."""

import torch
import torch.nn.functional as F
from torch import nn


class Experts(nn.Module):
    def __init__(self, width, experts=4, chosen=2):
        super().__init__()
        self.chosen = chosen
        self.router = nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)) for _ in range(experts)
        )

    def forward(self, x):
        flat = x.flatten(0, 1)
        with torch.autocast("cpu", enabled=False):
            logits = F.linear(flat.float(), self.router.weight.float())
            probabilities = F.softmax(logits, dim=-1, dtype=torch.float32)
        weights, picked = probabilities.topk(self.chosen, dim=-1)
        weights = weights / weights.sum(-1, keepdim=True)
        out = torch.zeros(flat.shape, dtype=torch.float32)
        for index, expert in enumerate(self.experts):
            rows, place = (picked == index).nonzero(as_tuple=True)
            out.index_add_(0, rows, expert(flat[rows]).float() * weights[rows, place, None])
        share = torch.zeros(len(self.experts)).index_add_(0, picked.flatten(), torch.ones(picked.numel()))
        balance = (share / picked.numel() * probabilities.mean(0)).sum() * len(self.experts)
        return out.view_as(x).to(x.dtype), balance


class MoELM(nn.Module):
    def __init__(self, words=24, width=24):
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.mix = nn.GRU(width, width, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.experts = Experts(width)
        self.head = nn.Linear(width, words)

    def forward(self, ids):
        h, _ = self.mix(self.embed(ids))
        routed, balance = self.experts(self.norm(h))
        return self.head(h + routed), balance


def train(model, optimizer, ids, steps):
    for step in range(steps):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits, balance = model(ids[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten()) + 0.01 * balance
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step} loss {loss.item():.4f} balance {balance.item():.3f}")


def main():
    torch.manual_seed(0)
    ids = torch.arange(13).repeat(8, 1) + torch.randint(0, 8, (8, 1))
    model = MoELM()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    train(model, optimizer, ids, 10)


if __name__ == "__main__":
    main()
