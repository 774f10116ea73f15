"""A character-level transformer: rotary positions, RMSNorm by hand, bfloat16 autocast, four micro-batches a step."""

import math

import torch
import torch.nn.functional as F
from torch import nn

TEXT = "the quick brown fox jumps over the lazy dog and runs back to the quiet wood. " * 8


class RMSNorm(nn.Module):
    def __init__(self, width, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x):
        h = x.float()
        h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * h.to(x.dtype)


class Rotary(nn.Module):
    def __init__(self, width, base=10000.0):
        super().__init__()
        inv_freq = 1.0 / (base ** (torch.arange(0, width, 2).float() / width))
        self.register_buffer("inv_freq", inv_freq, persistent=False)

    def forward(self, length):
        positions = torch.arange(length, dtype=torch.float32)
        angles = torch.outer(positions, self.inv_freq.float())
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos(), angles.sin()


def turn(x, cos, sin):
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-right, left], dim=-1) * sin


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x, cos, sin):
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k = turn(q, cos, sin).to(v.dtype), turn(k, cos, sin).to(v.dtype)
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
        scores = scores.float().masked_fill(hidden, float("-inf"))
        weights = F.softmax(scores, dim=-1).to(v.dtype)
        return self.out((weights @ v).transpose(1, 2).reshape(batch, length, width))


class Layer(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.before_attention, self.before_mlp = RMSNorm(width), RMSNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))

    def forward(self, x, cos, sin):
        x = x + self.attention(self.before_attention(x), cos, sin)
        return x + self.mlp(self.before_mlp(x))


class CharTransformer(nn.Module):
    def __init__(self, letters, width=32, heads=2, depth=2):
        super().__init__()
        self.embed = nn.Embedding(letters, width)
        self.rotary = Rotary(width // heads)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(depth))
        self.norm = RMSNorm(width)
        self.head = nn.Linear(width, letters, bias=False)

    def forward(self, ids):
        cos, sin = self.rotary(ids.shape[1])
        h = self.embed(ids)
        for layer in self.layers:
            h = layer(h, cos, sin)
        return self.head(self.norm(h))


def main():
    torch.manual_seed(0)
    letters = sorted(set(TEXT))
    ids = torch.tensor([letters.index(c) for c in TEXT])
    model = CharTransformer(len(letters))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), eps=1e-8)
    micro_batches, length = 4, 24
    for step in range(10):
        optimizer.zero_grad()
        total = 0.0
        for _ in range(micro_batches):
            starts = torch.randint(0, len(ids) - length - 1, (8,))
            batch = torch.stack([ids[s : s + length + 1] for s in starts])
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = model(batch[:, :-1])
            loss = F.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
            (loss / micro_batches).backward()
            total += loss.item() / micro_batches
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        print(f"step {step} loss {total:.4f} norm {norm:.3f}")


if __name__ == "__main__":
    main()
