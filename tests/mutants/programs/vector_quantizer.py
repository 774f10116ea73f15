"""A VQ autoencoder whose codebook is moved by running counts and sums in float32 buffers."""

import torch
import torch.nn.functional as F
from torch import nn


class Codebook(nn.Module):
    def __init__(self, codes=16, width=6, decay=0.95):
        super().__init__()
        self.decay = decay
        entries = torch.randn(codes, width)
        self.register_buffer("entries", entries)
        self.register_buffer("counts", torch.ones(codes))
        self.register_buffer("sums", entries.clone())

    def forward(self, z):
        nearest = torch.cdist(z, self.entries).argmin(dim=1)
        quantised = self.entries[nearest]
        if self.training:
            self.move(z.detach(), nearest)
        return z + (quantised - z).detach(), F.mse_loss(z, quantised)

    @torch.no_grad()
    def move(self, z, nearest):
        hits = torch.bincount(nearest, minlength=len(self.counts)).float()
        sums = torch.zeros_like(self.sums).index_add(0, nearest, z)
        self.counts.mul_(self.decay).add_(hits, alpha=1 - self.decay)
        self.sums.mul_(self.decay).add_(sums, alpha=1 - self.decay)
        self.entries.copy_(self.sums / self.counts.clamp(min=1e-3)[:, None])


def main():
    torch.manual_seed(0)
    encoder, decoder, codebook = nn.Linear(10, 6), nn.Linear(6, 10), Codebook()
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-2)
    x = torch.randn(128, 3) @ torch.randn(3, 10)
    for step in range(14):
        quantised, commitment = codebook(encoder(x))
        loss = F.mse_loss(decoder(quantised), x) + 0.25 * commitment
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step} loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
