"""A vision transformer: patches, a class token, learned positions, scaled_dot_product_attention, mixup, AMP float16."""

import torch
import torch.nn.functional as F
from torch import nn


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, width * 3)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    def __init__(self, size=12, patch=4, width=32, heads=2, depth=2, classes=4):
        super().__init__()
        self.patches = nn.Conv2d(1, width, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(torch.randn(1, (size // patch) ** 2 + 1, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.places
        return self.head(self.norm(self.blocks(x))[:, 0])


def mixed(images, labels, classes=4, alpha=0.8):
    share = torch.distributions.Beta(alpha, alpha).sample()
    order = torch.randperm(len(images))
    soft = F.one_hot(labels, classes).float()
    return share * images + (1 - share) * images[order], share * soft + (1 - share) * soft[order]


def main():
    torch.manual_seed(0)
    images = torch.randn(32, 1, 12, 12)
    labels = images[:, 0, ::4, ::4].flatten(1)[:, :4].argmax(dim=1)
    model = ViT()
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.05},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=3e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    for step in range(14):
        x, y = mixed(images, labels)
        with torch.autocast("cpu", dtype=torch.float16):
            logits = model(x)
        loss = -(y * F.log_softmax(logits.float(), dim=-1)).sum(-1).mean()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.float16):
            plain = F.cross_entropy(model(images).float(), labels)
        print(f"step {step} mixed {loss.item():.4f} loss {plain.item():.4f}")


if __name__ == "__main__":
    main()
