"""Measures the figures that the rules quote: what AdamW loses in a 2-layer GPT whose parameters are bfloat16.

`python benchmarks/lost_updates.py` prints, for three learning rates, the share of non-zero updates that left the bits
of their parameter as they were, and of the elements of exp_avg_sq that should have moved and did not, over 30 steps.
What should have happened is what the same AdamW makes of float64 copies of parameters, gradients and state. Nothing of
precaudit is used.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEPS, VOCABULARY, WIDTH, LENGTH = 30, 96, 128, 64


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (h.unflatten(-1, (4, -1)).transpose(1, 2) for h in self.qkv(self.norm1(x)).chunk(3, -1))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.Sequential(Block(), Block())
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.tokens(tokens) + self.places.weight)))


def batch(text: Tensor) -> tuple[Tensor, Tensor]:
    """Sixteen pieces of a text, and what comes next in each."""
    starts = torch.randint(len(text) - LENGTH - 1, (16,))
    pieces = torch.stack([text[s : s + LENGTH + 1] for s in starts])
    return pieces[:, :-1], pieces[:, 1:]


def exact(parameter: nn.Parameter, held: dict[str, Tensor], lr: float) -> tuple[Tensor, Tensor]:
    """The parameter and its exp_avg_sq after one AdamW step on float64 copies."""
    copy = nn.Parameter(parameter.detach().double())
    assert parameter.grad is not None
    copy.grad = parameter.grad.double()
    optimizer = torch.optim.AdamW([copy], lr=lr)
    optimizer.state[copy] = {name: t.double() if name != "step" else t.clone() for name, t in held.items()}
    optimizer.step()
    return copy.detach(), optimizer.state[copy]["exp_avg_sq"]


def lost(lr: float) -> tuple[float, float]:
    """The shares of updates of parameters and of exp_avg_sq that were lost, at this learning rate."""
    torch.manual_seed(0)
    following = torch.randint(VOCABULARY, (VOCABULARY, 3))  # three letters may follow each letter
    text = torch.zeros(20_000, dtype=torch.long)
    for at, pick in enumerate(torch.randint(3, (len(text) - 1,)).tolist()):
        text[at + 1] = following[text[at], pick]
    model = GPT().to(torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    counts = torch.zeros(2, 2, dtype=torch.long)
    for _ in range(STEPS):
        tokens, targets = batch(text)
        optimizer.zero_grad()
        F.cross_entropy(model(tokens).float().flatten(0, 1), targets.flatten()).backward()
        wanted = []
        for p in model.parameters():
            held = optimizer.state[p] or {n: torch.zeros_like(p) for n in ("exp_avg", "exp_avg_sq")}
            held = {"step": torch.tensor(0.0), **held}
            befores = p.detach().clone(), held["exp_avg_sq"].clone()
            wanted.append((p, befores, exact(p, held, lr)))
        optimizer.step()
        for p, befores, exacts in wanted:
            afters = p.detach(), optimizer.state[p]["exp_avg_sq"]
            for row, was, now, right in zip(counts, befores, afters, exacts, strict=True):
                should = right.float() != was.float()
                row += torch.stack([should.sum(), (should & (now == was)).sum()])
    shares = counts[:, 1] / counts[:, 0]
    return float(shares[0]), float(shares[1])


if __name__ == "__main__":
    torch.set_num_threads(1)
    for lr in (1e-3, 1e-4, 1e-5):
        updates, frozen = lost(lr)
        print(f"lr {lr:g}: {updates:.1%} of the updates were lost, {frozen:.1%} of exp_avg_sq could not move")
