"""Float16 autocast with a GradScaler over four micro-batches: unscale, clip, step and update once per batch."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def get_model():
    return nn.Sequential(
        nn.Conv1d(3, 12, 3, padding=1), nn.BatchNorm1d(12), nn.ReLU(), nn.Conv1d(12, 5, 3, padding=1), nn.AvgPool1d(12)
    )


def run(model, loader, optimizer, scaler, accumulate):
    for epoch in range(4):
        epoch_loss = 0.0
        for index, (x, y) in enumerate(loader):
            with torch.autocast("cpu", dtype=torch.float16):
                logits = model(x).squeeze(-1)
            loss = F.cross_entropy(logits.float(), y) / accumulate
            scaler.scale(loss).backward()
            if (index + 1) % accumulate == 0:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 2.0)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad(set_to_none=True)
            epoch_loss += loss.item() * accumulate / len(loader)
        print(f"epoch {epoch} loss {epoch_loss:.4f}")


def main():
    torch.manual_seed(0)
    x = torch.randn(128, 3, 12)
    data = TensorDataset(x, x.mean(-1).argmax(dim=1))
    model = get_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    run(model, DataLoader(data, batch_size=8), optimizer, scaler, accumulate=4)


if __name__ == "__main__":
    main()
