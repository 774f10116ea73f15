"""A diagonal state-space layer run by a scan whose state stays float32, on a copying task under bfloat16 autocast."""

import torch
import torch.nn.functional as F
from torch import nn


class StateSpace(nn.Module):
    def __init__(self, width, state=8):
        super().__init__()
        self.log_decay = nn.Parameter(torch.log(torch.rand(width, state) * 0.5 + 0.1))
        self.inside = nn.Linear(width, state)
        self.read = nn.Linear(width, state)
        self.skip = nn.Parameter(torch.ones(width))

    def forward(self, x):
        decay = torch.exp(-torch.exp(self.log_decay.float()))
        given, read = self.inside(x).float(), self.read(x).float()
        state = torch.zeros(x.shape[0], x.shape[2], given.shape[2], dtype=torch.float32)
        out = []
        for t in range(x.shape[1]):
            state = decay * state + x[:, t, :, None].float() * given[:, t, None, :]
            out.append((state * read[:, t, None, :]).sum(-1))
        return (torch.stack(out, dim=1) + self.skip * x.float()).to(x.dtype)


class Copier(nn.Module):
    def __init__(self, words=10, width=24):
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.norm = nn.LayerNorm(width)
        self.mix = StateSpace(width)
        self.out = nn.Linear(width, words)

    def forward(self, ids):
        h = self.embed(ids)
        return self.out(F.gelu(h + self.mix(self.norm(h))))


def main():
    torch.manual_seed(0)
    ids = torch.randint(0, 10, (16, 20))
    ids[:, 4:] = ids[:, :4].repeat(1, 4)
    net = Copier()
    optimizer = torch.optim.NAdam(net.parameters(), lr=1e-2)
    for step in range(8):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = net(ids[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step} loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
