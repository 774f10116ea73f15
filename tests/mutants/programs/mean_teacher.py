"""Semi-supervised learning with a mean teacher: consistency in float32, a ramp-up weight, a per-class running average."""

import copy

import torch
import torch.nn.functional as F
from torch import nn


def network():
    return nn.Sequential(nn.Linear(12, 40), nn.BatchNorm1d(40), nn.ReLU(), nn.Dropout(0.1), nn.Linear(40, 3))


@torch.no_grad()
def ema_update(teacher, student, decay):
    for name, value in student.state_dict().items():
        slow = teacher.state_dict()[name]
        if slow.dtype.is_floating_point:
            slow.mul_(decay).add_(value, alpha=1 - decay)
        else:
            slow.copy_(value)


def main():
    torch.manual_seed(0)
    x = torch.randn(96, 12)
    y = x[:, :3].argmax(dim=1)
    labelled = 48
    student = network()
    ema_model = copy.deepcopy(student).requires_grad_(False)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    shares = torch.full((3,), 1 / 3, dtype=torch.float32)
    for step in range(14):
        weight = min(1.0, step / 8)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = student(x + 0.1 * torch.randn_like(x))
            with torch.no_grad():
                wanted = ema_model(x + 0.1 * torch.randn_like(x))
        probabilities = F.softmax(wanted.float(), dim=-1)
        shares = 0.9 * shares + 0.1 * probabilities.mean(0)
        consistency = F.mse_loss(F.softmax(logits.float(), dim=-1), probabilities / shares * shares.mean())
        supervised = F.cross_entropy(logits[:labelled].float(), y[:labelled])
        loss = supervised + weight * consistency
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ema_update(ema_model, student, decay=0.99)
        print(f"step {step} loss {supervised.item():.4f} consistency {consistency.item():.4f}")


if __name__ == "__main__":
    main()
