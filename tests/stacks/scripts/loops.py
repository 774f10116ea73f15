"""The same small classifier under Lightning's Trainer, under Fabric and in an Accelerate loop."""

import lightning as L
import torch
from accelerate import Accelerator
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.LayerNorm(32))
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        return self.head(self.body(x))


class Classifier(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = Net()
        self.losses = []

    def training_step(self, batch, index):
        x, y = batch
        loss = nn.functional.cross_entropy(self.net(x).float(), y)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def data():
    torch.manual_seed(0)
    rows = torch.utils.data.TensorDataset(torch.randn(40, 16), torch.randint(0, 4, (40,)))
    return torch.utils.data.DataLoader(rows, batch_size=8)


def lightning(precision, folder, **options):
    loader = data()
    model = Classifier()
    trainer = L.Trainer(
        accelerator="cpu",
        precision=precision,
        max_steps=5,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"devices": 1, **options},
    )
    trainer.fit(model, loader)
    return model, trainer.optimizers[0], model.losses


def fabric(precision, folder):
    loader = data()
    fabric = L.Fabric(accelerator="cpu", devices=1, precision=precision)
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    model, optimizer = fabric.setup(net, optimizer)
    losses = []
    for x, y in fabric.setup_dataloaders(loader):
        loss = nn.functional.cross_entropy(model(x).float(), y)
        optimizer.zero_grad()
        fabric.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    return net, optimizer.optimizer, losses


def accelerate(precision, folder, low=False):
    loader = data()
    accelerator = Accelerator(cpu=True, mixed_precision=precision)
    net = Net()
    if low:
        net.to(torch.bfloat16)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    model, optimizer, loader = accelerator.prepare(net, optimizer, loader)
    losses = []
    for x, y in loader:
        with accelerator.accumulate(model):
            loss = nn.functional.cross_entropy(model(x.to(net.head.weight.dtype)).float(), y)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    return net, optimizer.optimizer, losses
