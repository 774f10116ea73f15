"""A loop with Accelerate: bf16, gradient accumulation by its context manager, clipping, a prepared scheduler."""

# needs: accelerate

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def main():
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=2)
    x = torch.randn(320, 10)
    loader = DataLoader(TensorDataset(x, x[:, :4].argmax(dim=1)), batch_size=32)
    model = nn.Sequential(nn.Linear(10, 48), nn.SiLU(), nn.Linear(48, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.5, 10)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    for epoch in range(2):
        for step, (inputs, labels) in enumerate(loader):
            with accelerator.accumulate(model):
                logits = model(inputs)
                loss = F.cross_entropy(logits, labels)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            print(f"step {step} loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
