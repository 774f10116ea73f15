"""Distils a fixed teacher into a small student, loop in a function; the soft targets are float32."""

import torch
import torch.nn.functional as F
from torch import nn


def network(width):
    return nn.Sequential(nn.Linear(12, width), nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, 5))


def soft_targets(teacher, x, temperature):
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        logits = teacher(x)
    return F.softmax(logits.float() / temperature, dim=-1)


def distil(student, teacher, x, y, steps=10, temperature=2.0, mix=0.5):
    optimizer = torch.optim.RMSprop(student.parameters(), lr=3e-3, momentum=0.5)
    for step in range(steps):
        wanted = soft_targets(teacher, x, temperature)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = student(x)
        logits = logits.float()
        soft = F.kl_div(F.log_softmax(logits / temperature, dim=-1), wanted, reduction="batchmean") * temperature**2
        loss = mix * soft + (1 - mix) * F.cross_entropy(logits, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step} loss {loss.item():.4f}")


def main():
    torch.manual_seed(0)
    x = torch.randn(64, 12)
    y = (x @ torch.randn(12, 5)).argmax(dim=1)
    teacher = network(64)
    teacher.load_state_dict({k: v * 1.5 for k, v in teacher.state_dict().items()})
    teacher.requires_grad_(False).eval()
    distil(network(24), teacher, x, y)


if __name__ == "__main__":
    main()
