"""A variational autoencoder, trained by a small Trainer class under bfloat16 autocast, with a checkpoint at the end."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class Config:
    width: int = 32
    latent: int = 4
    lr: float = 3e-3
    steps: int = 12
    amp_dtype: torch.dtype = torch.bfloat16
    beta: float = 0.1


class VAE(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(16, config.width), nn.GELU(), nn.Linear(config.width, 2 * config.latent))
        self.decode = nn.Sequential(nn.Linear(config.latent, config.width), nn.GELU(), nn.Linear(config.width, 16))

    def forward(self, x):
        mean, log_var = self.encode(x).chunk(2, dim=-1)
        mean, log_var = mean.float(), log_var.float()
        z = mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)
        return self.decode(z), mean, log_var


class Trainer:
    def __init__(self, config):
        self.config = config
        self.model = VAE(config)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=config.lr)
        self.seen = torch.zeros((), dtype=torch.float32)

    def loss(self, x):
        with torch.autocast("cpu", dtype=self.config.amp_dtype):
            back, mean, log_var = self.model(x)
        reconstruction = F.mse_loss(back.float(), x)
        divergence = -0.5 * (1 + log_var - mean.pow(2) - log_var.exp()).sum(dim=-1).mean()
        return reconstruction + self.config.beta * divergence

    def train_step(self, x):
        self.optimizer.zero_grad()
        loss = self.loss(x)
        loss.backward()
        self.optimizer.step()
        self.seen += len(x)
        return loss.detach()

    def fit(self, data, folder):
        for step in range(self.config.steps):
            loss = self.train_step(data)
            print(f"step {step} loss {loss.item():.4f} seen {self.seen.item():.0f}")
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "step": step}
        torch.save(state, folder / "vae.pt")


def main():
    torch.manual_seed(0)
    trainer = Trainer(Config())
    data = torch.randn(64, 4) @ torch.randn(4, 16)
    with tempfile.TemporaryDirectory() as folder:
        trainer.fit(data, Path(folder))


if __name__ == "__main__":
    main()
