"""A sequence-to-sequence transformer that learns to reverse: nn.Transformer, label smoothing, a Noam schedule."""

import math

import torch
import torch.nn.functional as F
from torch import nn

START, LETTERS, LENGTH = 10, 10, 8


class Positions(nn.Module):
    def __init__(self, width, longest=64):
        super().__init__()
        place = torch.arange(longest, dtype=torch.float32).unsqueeze(1)
        rate = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * (-math.log(10000.0) / width))
        table = torch.zeros(longest, width, dtype=torch.float32)
        table[:, 0::2] = torch.sin(place * rate)
        table[:, 1::2] = torch.cos(place * rate)
        self.register_buffer("table", table)

    def forward(self, x):
        return x + self.table[: x.shape[1]]


class Reverser(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.embed = nn.Embedding(LETTERS + 1, width)
        self.positions = Positions(width)
        self.transformer = nn.Transformer(
            width, nhead=2, num_encoder_layers=1, num_decoder_layers=1, dim_feedforward=64, dropout=0.0, batch_first=True
        )
        self.out = nn.Linear(width, LETTERS)

    def forward(self, source, given):
        mask = nn.Transformer.generate_square_subsequent_mask(given.shape[1])
        source, given = self.positions(self.embed(source)), self.positions(self.embed(given))
        return self.out(self.transformer(source, given, tgt_mask=mask, tgt_is_causal=True))


def noam(step, warmup=4):
    return min((step + 1) ** -0.5, (step + 1) * warmup**-1.5)


def main():
    torch.manual_seed(0)
    model = Reverser()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, betas=(0.9, 0.98), eps=1e-9)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, noam)
    source = torch.randint(0, LETTERS, (32, LENGTH))
    wanted = source.flip(1)
    given = torch.cat([torch.full((32, 1), START), wanted[:, :-1]], dim=1)
    for step in range(10):
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(source, given)
        loss = F.cross_entropy(logits.float().transpose(1, 2), wanted, label_smoothing=0.1)
        loss.backward()
        optimizer.step()
        schedule.step()
        print(f"step {step} loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
