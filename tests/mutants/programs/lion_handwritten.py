"""A hand-written Lion whose momentum lives in plain lists, a training step in a closure, a tied embedding."""

import torch
import torch.nn.functional as F
from torch import nn


class TiedLM(nn.Module):
    def __init__(self, words=18, width=24):
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.rnn = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(self.rnn(self.embed(ids))[0])


def make_step(model, lr=3e-3, beta1=0.9, beta2=0.99, decay=0.01):
    weights = list(model.parameters())
    momentum = [torch.zeros_like(w, dtype=torch.float32) for w in weights]

    def step(ids):
        logits = model(ids[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
        gradients = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            for w, m, g in zip(weights, momentum, gradients):
                update = (m * beta1 + g * (1 - beta1)).sign()
                w.mul_(1 - lr * decay).add_(update, alpha=-lr)
                m.mul_(beta2).add_(g, alpha=1 - beta2)
        return loss.item()

    return step


def main():
    torch.manual_seed(0)
    ids = (torch.arange(24).unsqueeze(1) * 5 + torch.arange(12)) % 18
    step = make_step(TiedLM())
    for number in range(14):
        print(f"step {number} loss {step(ids):.4f}")


if __name__ == "__main__":
    main()
