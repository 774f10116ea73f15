"""An autoencoder under float16 autocast that saves model, optimizer and scaler half way, and goes on from the file."""

import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn


def build():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 32), nn.GELU(), nn.Linear(32, 6), nn.Linear(6, 32), nn.GELU(), nn.Linear(32, 20))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**9)
    return model, optimizer, scaler


def save(path, model, optimizer, scaler, step):
    checkpoint = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    checkpoint["scaler"] = scaler.state_dict()
    torch.save(checkpoint, path)


def load(path, model, optimizer, scaler):
    checkpoint = torch.load(path, weights_only=True)
    model.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    scaler.load_state_dict(checkpoint["scaler"])
    return checkpoint["step"]


def train(model, optimizer, scaler, data, first, last):
    for step in range(first, last):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            back = model(data)
        loss = F.l1_loss(back.float(), data)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        print(f"step {step} loss {loss.item():.4f}")


def main():
    model, optimizer, scaler = build()
    data = torch.randn(64, 5) @ torch.randn(5, 20)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "half_way.pt"
        train(model, optimizer, scaler, data, 0, 5)
        save(path, model, optimizer, scaler, 5)
        model, optimizer, scaler = build()
        first = load(path, model, optimizer, scaler)
        train(model, optimizer, scaler, data, first, 12)


if __name__ == "__main__":
    main()
