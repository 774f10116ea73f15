"""A graph network: messages summed by index_add_ in float32, degrees counted, nodes classified under autocast."""

import torch
import torch.nn.functional as F
from torch import nn


class GraphConv(nn.Module):
    def __init__(self, inside, out):
        super().__init__()
        self.own = nn.Linear(inside, out)
        self.message = nn.Linear(inside, out)

    def forward(self, x, edges, degree):
        source, target = edges
        sent = self.message(x)[source].float()
        gathered = torch.zeros(len(x), sent.shape[1], dtype=torch.float32).index_add_(0, target, sent)
        return self.own(x) + gathered / degree.clamp(min=1.0)[:, None]


class GCN(nn.Module):
    def __init__(self, inside=12, width=32, classes=3):
        super().__init__()
        self.first = GraphConv(inside, width)
        self.norm = nn.LayerNorm(width)
        self.second = GraphConv(width, classes)

    def forward(self, x, edges, degree):
        return self.second(F.elu(self.norm(self.first(x, edges, degree))), edges, degree)


def degrees(edges, nodes):
    ones = torch.ones(edges.shape[1], dtype=torch.float32)
    return torch.zeros(nodes, dtype=torch.float32).scatter_add_(0, edges[1], ones)


def main():
    torch.manual_seed(0)
    nodes = 90
    labels = torch.arange(nodes) % 3
    same = torch.randint(0, nodes, (2, 1200))
    same = same[:, labels[same[0]] == labels[same[1]]]
    other = torch.randint(0, nodes, (2, 100))
    edges = torch.cat([same, other], dim=1)
    x = torch.randn(nodes, 12) + F.one_hot(labels, 12).float()
    degree = degrees(edges, nodes)
    known = torch.rand(nodes) < 0.5
    model = GCN()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=5e-3)
    for step in range(12):
        with torch.autocast("cpu", torch.bfloat16):
            scores = model(x, edges, degree)
        loss = F.cross_entropy(scores[known].float(), labels[known])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            right = (scores[~known].argmax(1) == labels[~known]).float().mean()
        print(f"step {step} loss {loss.item():.4f} right {right.item():.3f}")


if __name__ == "__main__":
    main()
