"""The training loop, its averaged weights and its metrics."""

import copy

import torch
import torch.nn.functional as F
from parts.models import REGISTRY


class Engine:
    def __init__(self, config):
        self.config = config
        self.model = REGISTRY[config.model]()
        self.ema = copy.deepcopy(self.model).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.lr)
        self.running = torch.zeros((), dtype=torch.float32)

    def batches(self):
        x = torch.randn(32, 10)
        return [(x, x[:, :4].argmax(dim=1))] * self.config.accumulate

    def micro_step(self, x, y):
        with torch.autocast("cpu", dtype=self.config.compute_dtype):
            logits = self.model(x)
        loss = F.cross_entropy(logits.float(), y) / self.config.accumulate
        loss.backward()
        return loss.detach()

    @torch.no_grad()
    def update_average(self):
        for slow, fast in zip(self.ema.parameters(), self.model.parameters()):
            slow.lerp_(fast, 1 - self.config.ema_decay)

    def fit(self):
        for step in range(self.config.steps):
            self.optimizer.zero_grad()
            total = sum(self.micro_step(x, y) for x, y in self.batches())
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.update_average()
            self.running.mul_(0.9).add_(total, alpha=0.1)
            print(f"step {step} loss {total.item():.4f} running {self.running.item():.4f}")
