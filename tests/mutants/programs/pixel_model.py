"""An autoregressive model of tiny images: masked convolutions, 8 grey levels, dequantised targets by cross-entropy."""

import torch
import torch.nn.functional as F
from torch import nn

LEVELS = 8


class MaskedConv2d(nn.Conv2d):
    def __init__(self, kind, inputs, outputs, size=3):
        super().__init__(inputs, outputs, size, padding=size // 2)
        mask = torch.ones(1, 1, size, size)
        mask[..., size // 2, size // 2 + (kind == "B") :] = 0
        mask[..., size // 2 + 1 :, :] = 0
        self.register_buffer("mask", mask)

    def forward(self, x):
        return self._conv_forward(x, self.weight * self.mask, self.bias)


class PixelModel(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.first = MaskedConv2d("A", 1, width)
        self.rest = nn.Sequential(nn.ReLU(), MaskedConv2d("B", width, width), nn.ReLU(), nn.Conv2d(width, LEVELS, 1))

    def forward(self, images):
        return self.rest(self.first(images))


def main():
    torch.manual_seed(0)
    model = PixelModel()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    rows = torch.arange(8).view(1, 8, 1) + torch.arange(8).view(1, 1, 8)
    images = (rows + torch.randint(0, 3, (32, 1, 1))) % LEVELS
    for step in range(10):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(images[:, None].float() / LEVELS)
        loss = F.cross_entropy(logits.float(), images)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step} loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
