"""Speech recognition with CTC: log-mel features with a floor, a bidirectional GRU, length masks, gradient clipping."""

import torch
import torch.nn.functional as F
from torch import nn


def log_mel(waves, bands=16, frame=32):
    power = torch.fft.rfft(waves.unfold(-1, frame, frame // 2)).abs().pow(2)
    mel = power @ torch.rand(power.shape[-1], bands, generator=torch.Generator().manual_seed(1))
    return torch.log(mel.float() + 1e-6)


class Recogniser(nn.Module):
    def __init__(self, bands=16, width=24, letters=6):
        super().__init__()
        self.norm = nn.BatchNorm1d(bands)
        self.gru = nn.GRU(bands, width, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * width, letters)

    def forward(self, features):
        h, _ = self.gru(self.norm(features.transpose(1, 2)).transpose(1, 2))
        return self.head(h)


def speech(n=16, letters=4):
    spoken = torch.randint(1, 6, (n, letters))
    time = torch.arange(512).float()
    tones = torch.sin(time * spoken.repeat_interleave(128, dim=1) * 0.2)
    return tones + 0.01 * torch.randn(n, 512), spoken


def main():
    torch.manual_seed(0)
    waves, spoken = speech()
    features = log_mel(waves)
    model = Recogniser()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    frames = torch.full((len(waves),), features.shape[1])
    letters = torch.full((len(waves),), spoken.shape[1])
    for step in range(12):
        logits = model(features)
        log_probs = F.log_softmax(logits.float(), dim=-1).transpose(0, 1)
        loss = F.ctc_loss(log_probs, spoken, frames, letters, blank=0, zero_infinity=True)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        print(f"step {step} loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
