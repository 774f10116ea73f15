"""Muon for the matrices and AdamW for the rest of a small language model, under bfloat16 autocast."""

import torch
import torch.nn.functional as F
from torch import nn


class Mixer(nn.Module):
    def __init__(self, words=20, width=32, length=10):
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.over_time = nn.Linear(length, length)
        self.over_width = nn.Linear(width, width)
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, words)

    def forward(self, ids):
        h = self.embed(ids)
        h = h + self.over_time(h.transpose(1, 2)).transpose(1, 2)
        h = h + F.silu(self.over_width(self.norm(h)))
        return self.head(h)


def main():
    torch.manual_seed(0)
    model = Mixer()
    matrices = [model.over_time.weight, model.over_width.weight]
    taken = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in taken]
    muon = torch.optim.Muon(matrices, lr=2e-2, momentum=0.95)
    adamw = torch.optim.AdamW(rest, lr=1e-2)
    ids = (torch.arange(32).unsqueeze(1) * 3 + torch.arange(11)) % 20
    for step in range(10):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(ids[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
        for optimizer in (muon, adamw):
            optimizer.zero_grad()
        loss.backward()
        muon.step()
        adamw.step()
        print(f"step {step} loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
