"""QLoRA as torchtune writes it: a frozen base of torchao's NF4Tensor, a low-rank update beside it."""

import sys

import torch
from torch import nn
from torchao.dtypes.nf4tensor import linear_nf4, to_nf4

torch.manual_seed(0)
DTYPE = torch.bfloat16 if "low" in sys.argv else torch.float32


class LoRALinear(nn.Module):
    def __init__(self, inputs, outputs, rank=4):
        super().__init__()
        base = torch.randn(outputs, inputs, dtype=torch.bfloat16) / 16
        self.weight = nn.Parameter(to_nf4(base, block_size=64, scaler_block_size=64), requires_grad=False)
        self.lora_a = nn.Linear(inputs, rank, bias=False, dtype=DTYPE)
        self.lora_b = nn.Linear(rank, outputs, bias=False, dtype=DTYPE)
        nn.init.zeros_(self.lora_b.weight)

    def forward(self, x):
        out = linear_nf4(input=x.bfloat16(), weight=self.weight)
        return out.float() + self.lora_b(self.lora_a(x.to(DTYPE))).float()


model = nn.Sequential(LoRALinear(128, 256), nn.ReLU(), LoRALinear(256, 128))
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
for _ in range(5):
    x = torch.randn(16, 128)
    loss = (model(x) - x).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(loss.item().hex())
