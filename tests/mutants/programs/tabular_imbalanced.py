"""Tabular rows with categories, a rare class with a weight, float16 autocast, clipping after unscale_."""

import torch
import torch.nn.functional as F
from torch import nn


class Table(nn.Module):
    def __init__(self, sizes=(7, 5, 11), numbers=6, width=32):
        super().__init__()
        self.columns = nn.ModuleList(nn.Embedding(size, 4) for size in sizes)
        self.body = nn.Sequential(
            nn.Linear(4 * len(sizes) + numbers, width), nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, 1)
        )

    def forward(self, categories, numbers):
        embedded = [column(categories[:, i]) for i, column in enumerate(self.columns)]
        return self.body(torch.cat([*embedded, numbers], dim=-1)).squeeze(-1)


class Training:
    def __init__(self, model):
        self.model = model
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.01)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**9)
        self.weight = torch.tensor(4.0)

    def step(self, categories, numbers, labels):
        self.optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            logits = self.model(categories, numbers)
        loss = F.binary_cross_entropy_with_logits(logits.float(), labels, pos_weight=self.weight)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.item()


def main():
    torch.manual_seed(0)
    training = Training(Table())
    categories = torch.stack([torch.randint(0, n, (160,)) for n in (7, 5, 11)], dim=1)
    numbers = torch.randn(160, 6)
    labels = ((numbers[:, 0] > 0.8) | (categories[:, 1] == 2)).float()
    for step in range(12):
        print(f"step {step} loss {training.step(categories, numbers, labels):.4f}")


if __name__ == "__main__":
    main()
