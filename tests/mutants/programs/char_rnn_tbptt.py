"""A character RNN with an LSTM and truncated backpropagation: its state is carried on, its loss smoothed."""

import math

import torch
from torch import nn

TEXT = "she sells sea shells by the sea shore; the shells she sells are sea shells for sure. " * 10


class CharRNN(nn.Module):
    def __init__(self, letters, width=48):
        super().__init__()
        self.embed = nn.Embedding(letters, 16)
        self.rnn = nn.LSTM(16, width, batch_first=True)
        self.head = nn.Linear(width, letters)

    def forward(self, ids, state):
        h, state = self.rnn(self.embed(ids), state)
        return self.head(h), state


class AverageMeter:
    def __init__(self, decay=0.9):
        self.value = torch.zeros((), dtype=torch.float32)
        self.weight = 0.0
        self.decay = decay

    def update(self, x):
        self.value = self.decay * self.value + (1 - self.decay) * x
        self.weight = self.decay * self.weight + 1 - self.decay

    def mean(self):
        return self.value.item() / self.weight


def main():
    torch.manual_seed(0)
    letters = sorted(set(TEXT))
    stream = torch.tensor([letters.index(c) for c in TEXT])[:784].view(4, 196)
    model = CharRNN(len(letters))
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    state, length, meter = None, 16, AverageMeter()
    for step in range(12):
        at = step * length
        inputs, wanted = stream[:, at : at + length], stream[:, at + 1 : at + length + 1]
        logits, state = model(inputs, state)
        state = tuple(s.detach() for s in state)
        loss = criterion(logits.flatten(0, 1), wanted.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
        optimizer.step()
        meter.update(loss.detach())
        print(f"step {step} loss {loss.item():.4f} perplexity {math.exp(meter.mean()):.2f}")


if __name__ == "__main__":
    main()
