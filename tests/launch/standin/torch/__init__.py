"""A torch that trains nothing in no time: `torch.step(dtype)` is one optimizer step, as far as the tracer can tell."""

import os

__version__ = os.environ.get("STANDIN_TORCH", "2.13.0")
on_step = None


def step(dtype: str = "float32") -> None:
    if on_step is not None:
        on_step(dtype)


def train(steps: int, dtype: str = "float32") -> None:
    for _ in range(steps):
        step(dtype)
