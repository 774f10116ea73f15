"""A text classifier whose model is compiled, under bfloat16 autocast; `wrong` keeps the model in bfloat16 instead."""

import sys

import torch
import torch.nn.functional as F
from torch import nn

WRONG = sys.argv[1:] == ["wrong"]


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(50, 32)
        self.norm, self.up, self.head = nn.LayerNorm(32), nn.Linear(32, 64), nn.Linear(64, 5)

    def forward(self, words):  # type: ignore[no-untyped-def]
        return self.head(F.gelu(self.up(self.norm(self.tokens(words).mean(dim=1)))))


def main() -> None:
    torch.manual_seed(0)
    model = Classifier().cuda()
    if WRONG:
        model = model.bfloat16()
    compiled = torch.compile(model)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
    for _ in range(5):
        words = torch.randint(0, 50, (8, 12), device="cuda")
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=not WRONG):
            logits = compiled(words)
        loss = F.cross_entropy(logits.float(), words[:, 0] % 5)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


main()
