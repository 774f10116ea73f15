"""A bfloat16 network with float32 masters kept by the loop; gradients of four micro-batches are summed in float32."""

import torch
import torch.nn.functional as F
from torch import nn


def main():
    torch.manual_seed(0)
    x, y = torch.randn(64, 12), torch.randint(0, 3, (64,))
    y = x[:, :3].argmax(dim=1)
    model = nn.Sequential(nn.Linear(12, 48), nn.GELU(), nn.Linear(48, 3)).to(torch.bfloat16)
    masters = [nn.Parameter(p.detach().clone().float()) for p in model.parameters()]
    optimizer = torch.optim.AdamW(masters, lr=1e-2)
    buffers = [torch.zeros_like(p, dtype=torch.float32) for p in model.parameters()]
    for step in range(12):
        for buffer in buffers:
            buffer.zero_()
        total = torch.zeros((), dtype=torch.float32)
        for part in range(4):
            rows = slice(16 * part, 16 * part + 16)
            logits = model(x[rows].to(torch.bfloat16))
            loss = F.cross_entropy(logits.float(), y[rows])
            loss.backward()
            total += loss.detach() / 4
            for buffer, p in zip(buffers, model.parameters()):
                buffer.add_(p.grad.float(), alpha=0.25)
                p.grad = None
        norm = torch.sqrt(sum(buffer.pow(2).sum() for buffer in buffers))
        for master, buffer in zip(masters, buffers):
            master.grad = buffer * (1.0 / norm.clamp(min=1.0))
        optimizer.step()
        with torch.no_grad():
            for p, master in zip(model.parameters(), masters):
                p.copy_(master)
        print(f"step {step} loss {total.item():.4f}")


if __name__ == "__main__":
    main()
