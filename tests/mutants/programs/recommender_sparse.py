"""A click-through recommender: embedding bags, a factorisation term, binary cross-entropy, two optimizers."""

import torch
import torch.nn.functional as F
from torch import nn


class FactorisationNet(nn.Module):
    def __init__(self, fields=(20, 30, 12), width=8):
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(count, width, sparse=True) for count in fields)
        self.deep = nn.Sequential(nn.Linear(len(fields) * width, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, ids):
        vectors = torch.stack([table(ids[:, i]) for i, table in enumerate(self.tables)], dim=1)
        square_of_sum = vectors.sum(dim=1).pow(2)
        sum_of_squares = vectors.pow(2).sum(dim=1)
        pairs = 0.5 * (square_of_sum - sum_of_squares).sum(dim=1)
        return self.deep(vectors.flatten(1)).squeeze(1) + pairs


def clicks(n=256):
    ids = torch.stack([torch.randint(0, count, (n,)) for count in (20, 30, 12)], dim=1)
    return ids, ((ids[:, 0] * 7 + ids[:, 1] * 3) % 5 < 2).float()


def main():
    torch.manual_seed(0)
    ids, labels = clicks()
    model = FactorisationNet()
    sparse = torch.optim.SparseAdam(list(model.tables.parameters()), lr=3e-2)
    dense = torch.optim.Adagrad(model.deep.parameters(), lr=3e-2)
    seen = torch.zeros((), dtype=torch.float64)
    for epoch in range(4):
        order = torch.randperm(len(ids))
        total = torch.zeros((), dtype=torch.float32)
        for rows in order.split(64):
            logits = model(ids[rows])
            loss = F.binary_cross_entropy_with_logits(logits, labels[rows])
            sparse.zero_grad()
            dense.zero_grad()
            loss.backward()
            sparse.step()
            dense.step()
            total += loss.detach() * len(rows)
            seen += len(rows)
        print(f"epoch {epoch} loss {total.item() / len(ids):.4f} seen {seen.item():.0f}")


if __name__ == "__main__":
    main()
