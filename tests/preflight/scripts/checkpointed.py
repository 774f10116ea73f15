"""A residual network that recomputes its blocks in backward; `wrong` keeps its weights in bfloat16."""

import sys

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

WRONG = sys.argv[1:] == ["wrong"]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(32), nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x):  # type: ignore[no-untyped-def]
        return x + self.down(F.silu(self.up(self.norm(x))))


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(16, 32), nn.Linear(32, 4)
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x):  # type: ignore[no-untyped-def]
        hidden = self.stem(x)
        for block in self.blocks:
            hidden = checkpoint(block, hidden, use_reentrant=False)
        return self.head(hidden)


def main() -> None:
    torch.manual_seed(0)
    device = torch.device("cuda")
    model = Network().to(device)
    if WRONG:
        model = model.to(torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(5):
        x, y = torch.randn(8, 16, device=device), torch.randint(0, 4, (8,), device=device)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            logits = model(x)
        loss = F.cross_entropy(logits.float(), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


main()
