"""accelerate with mixed_precision: `accelerated.py bf16|fp16`; `wrong` trains bfloat16 weights."""

import sys

import torch
from accelerate import Accelerator
from torch import nn


def main() -> None:
    torch.manual_seed(0)
    accelerator = Accelerator(mixed_precision=sys.argv[1], gradient_accumulation_steps=2)
    model = nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), nn.Linear(32, 4))
    if "wrong" in sys.argv:
        model = model.to(torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    data = torch.utils.data.TensorDataset(torch.randn(96, 16), torch.randint(0, 4, (96,)))
    loader = torch.utils.data.DataLoader(data, 8)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    assert accelerator.device.type == "cuda"
    for x, y in loader:
        with accelerator.accumulate(model):
            loss = nn.functional.cross_entropy(model(x.to(next(model.parameters()).dtype)).float(), y)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()


main()
