"""The configuration."""

from dataclasses import dataclass

import torch


@dataclass
class Config:
    model: str = "mlp"
    precision: str = "fp32"
    lr: float = 1e-3
    steps: int = 8
    accumulate: int = 2
    ema_decay: float = 0.99

    @property
    def compute_dtype(self):
        return {"fp32": torch.float32, "bf16": torch.bfloat16}[self.precision]
