"""bfloat16 weights with float32 masters; a hook adds each micro-batch's gradient to a float32 sum."""

import torch
import torch.nn.functional as F
from torch import nn

MICRO_BATCHES = 4


class Masters:
    def __init__(self, model):
        self.live = list(model.parameters())
        self.masters = [p.detach().float().requires_grad_() for p in self.live]
        for p in self.live:
            p.main_grad = torch.zeros_like(p, dtype=torch.float32)
            p.register_post_accumulate_grad_hook(self.collect)

    @staticmethod
    def collect(p):
        p.main_grad.add_(p.grad)
        p.grad = None

    def hand_over(self):
        for p, master in zip(self.live, self.masters):
            master.grad = p.main_grad.clone()
            p.main_grad.zero_()

    @torch.no_grad()
    def copy_back(self):
        for p, master in zip(self.live, self.masters):
            p.copy_(master)


def main():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 48), nn.GELU(), nn.Linear(48, 4)).to(torch.bfloat16)
    masters = Masters(model)
    optimizer = torch.optim.AdamW(masters.masters, lr=1e-2)
    x = torch.randn(MICRO_BATCHES, 32, 16)
    labels = x[..., :4].argmax(-1)
    for step in range(10):
        total = 0.0
        for part, wanted in zip(x, labels):
            logits = model(part.to(torch.bfloat16))
            loss = F.cross_entropy(logits.float(), wanted) / MICRO_BATCHES
            loss.backward()
            total += loss.item()
        masters.hand_over()
        optimizer.step()
        masters.copy_back()
        print(f"step {step} loss {total:.4f}")


if __name__ == "__main__":
    main()
