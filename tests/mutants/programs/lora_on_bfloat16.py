"""LoRA by hand: float32 adapters on a frozen bfloat16 base, trained with AdamW and a warm-up."""

import torch
import torch.nn.functional as F
from torch import nn


class LoRALinear(nn.Module):
    def __init__(self, base, rank=4, alpha=8.0):
        super().__init__()
        self.base = base
        self.lora_a = nn.Parameter(torch.randn(rank, base.in_features, dtype=torch.float32) * 0.05)
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank, dtype=torch.float32))
        self.scaling = alpha / rank

    def forward(self, x):
        low = F.linear(F.linear(x.float(), self.lora_a), self.lora_b) * self.scaling
        return self.base(x) + low.to(x.dtype)


class Classifier(nn.Module):
    def __init__(self, width=32, classes=4):
        super().__init__()
        self.first = nn.Linear(16, width)
        self.second = nn.Linear(width, width)
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        return self.head(F.gelu(self.second(F.gelu(self.first(x)))))


def add_adapters(model):
    model.requires_grad_(False)
    for name in ("first", "second", "head"):
        setattr(model, name, LoRALinear(getattr(model, name)))
    return [p for p in model.parameters() if p.requires_grad]


def main():
    torch.manual_seed(0)
    x = torch.randn(64, 16)
    y = x[:, :4].argmax(dim=1)
    model = Classifier().to(torch.bfloat16)
    adapters = add_adapters(model)
    optimizer = torch.optim.AdamW(adapters, lr=2e-2)
    warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 3))
    for step in range(12):
        logits = model(x.to(torch.bfloat16))
        loss = F.cross_entropy(logits.float(), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        warmup.step()
        print(f"step {step} loss {loss.item():.4f} lr {warmup.get_last_lr()[0]:.4f}")


if __name__ == "__main__":
    main()
