"""A project of several files: a configuration names model, optimizer and precision, a registry builds them."""

import torch
from parts.config import Config
from parts.engine import Engine


def main():
    torch.manual_seed(0)
    engine = Engine(Config(model="mlp", precision="bf16", lr=5e-3, steps=10))
    engine.fit()


if __name__ == "__main__":
    main()
