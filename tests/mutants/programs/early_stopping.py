"""A validation loss steers: the learning rate falls on a plateau, the best weights are kept and put back at the end."""

import copy

import torch
import torch.nn.functional as F
from torch import nn


class Stopper:
    def __init__(self, patience=6):
        self.best, self.waited, self.patience = torch.tensor(float("inf")), 0, patience
        self.weights = None

    def better(self, value, model):
        if value < self.best:
            self.best, self.waited = value, 0
            self.weights = copy.deepcopy(model.state_dict())
        else:
            self.waited += 1
        return self.waited < self.patience


@torch.no_grad()
def evaluate(model, x, y):
    model.eval()
    value = F.mse_loss(model(x), y)
    model.train()
    return value


def main():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Dropout(0.1), nn.Linear(32, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=3)
    x, held_out = torch.randn(128, 8), torch.randn(64, 8)
    stopper = Stopper()
    for step in range(14):
        loss = F.mse_loss(model(x), x.sum(1, keepdim=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        value = evaluate(model, held_out, held_out.sum(1, keepdim=True))
        scheduler.step(value)
        print(f"step {step} loss {loss.item():.4f}")
        if not stopper.better(value, model):
            break
    model.load_state_dict(stopper.weights)


if __name__ == "__main__":
    main()
