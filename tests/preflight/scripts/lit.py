"""Lightning on accelerator="gpu": `lit.py 16-mixed|bf16-mixed|bf16-true`."""

import sys

import lightning
import torch
from torch import nn


class Classifier(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), nn.Linear(32, 4))

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> torch.Tensor:
        x, y = batch
        assert x.is_cuda
        return nn.functional.cross_entropy(self.net(x).float(), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 1e-3)


def main() -> None:
    torch.manual_seed(0)
    data = torch.utils.data.TensorDataset(torch.randn(64, 16), torch.randint(0, 4, (64,)))
    trainer = lightning.Trainer(
        accelerator="gpu", devices=1, precision=sys.argv[1], max_steps=5, logger=False, enable_checkpointing=False
    )
    trainer.fit(Classifier(), torch.utils.data.DataLoader(data, 8))


main()
