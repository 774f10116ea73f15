"""Idioms of whole training scripts: configs, wrappers, helpers, classes."""

import contextlib
import functools
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
import torch.nn as nn
import torch.nn.functional as F


@dataclass
class Config:
    dim: int = 16
    dtype: torch.dtype = torch.bfloat16
    lr: float = 1e-4
    betas: tuple = field(default_factory=lambda: (0.9, 0.95))


class MLP(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.layers = nn.Sequential(*[nn.Linear(cfg.dim, cfg.dim) for _ in range(3)])
        self.out = nn.Linear(cfg.dim, 10)

    def forward(self, x):
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return self.out(x)


def with_dataclass():
    cfg = Config()
    model = MLP(cfg).to(cfg.dtype)  # expect: PA101
    return torch.optim.AdamW(model.parameters(), lr=cfg.lr)  # expect: PA301


def with_namespace():
    hp = SimpleNamespace(dim=4, precision="bf16")
    dtype = torch.bfloat16 if hp.precision == "bf16" else torch.float32
    model = MLP(hp)
    model = model.to(device="cpu", dtype=dtype)  # expect: PA101
    model = torch.compile(model)
    return torch.optim.AdamW(model.parameters())  # expect: PA301


def cast_parameters_one_by_one():
    model = MLP(Config())
    for p in model.parameters():
        p.data = p.data.to(torch.bfloat16)  # expect: PA101
    return torch.optim.AdamW(model.parameters())  # expect: PA301


def cast_modules_by_apply():
    model = MLP(Config())
    model.apply(lambda m: m.half() if isinstance(m, nn.Linear) else m)  # expect: PA101
    return torch.optim.AdamW(model.parameters(), eps=1e-4)  # expect: PA301


def default_dtype():
    torch.set_default_dtype(torch.bfloat16)  # expect: PA104 PA101
    model = MLP(Config())
    opt = torch.optim.AdamW(model.parameters())  # expect: PA301
    torch.set_default_dtype(torch.float32)
    return opt


class LM(nn.Module):
    def __init__(self, vocab=10, d=8):
        super().__init__()
        self.emb = nn.Embedding(vocab, d)
        self.rnn = nn.LSTM(d, d, batch_first=True)
        self.head = nn.Linear(d, vocab)

    def forward(self, ids, labels=None):
        h, _ = self.rnn(self.emb(ids))
        logits = self.head(h)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1))  # expect: PA401 PA404
        return SimpleNamespace(loss=loss, logits=logits)


def loss_inside_the_model(loader):
    net = LM().bfloat16()
    for ids, labels in loader:
        out = net(ids, labels=labels)
        out.loss.backward()


def loss_module(loader):
    net = LM().bfloat16()
    criterion = nn.CrossEntropyLoss()
    for ids, labels in loader:
        logits = net(ids).logits
        loss = criterion(logits.flatten(0, 1), labels.flatten())  # expect: PA401 PA404
        loss.backward()


def loss_tuple(loader):
    net = LM().bfloat16()

    def compute(batch):
        ids, labels = batch
        logits = net(ids).logits.transpose(1, 2)
        return F.cross_entropy(logits, labels), logits  # expect: PA401 PA404

    for batch in loader:
        loss, logits = compute(batch)
        (loss / 4).backward()


def amp_context(enabled=True):
    return torch.autocast("cuda", dtype=torch.float16) if enabled else contextlib.nullcontext()


def wrapped_region(loader, loss_fn):
    model = MLP(Config())
    ctx = amp_context()
    for x, y in loader:
        with ctx:
            loss = loss_fn(model(x), y)
        loss.backward()  # expect: PA201


partial_region = functools.partial(torch.autocast, device_type="cuda", dtype=torch.float16)


def from_partial(loader, loss_fn):
    model = MLP(Config())
    for x, y in loader:
        with partial_region():
            loss = loss_fn(model(x), y)
            loss.backward()  # expect: PA201 PA701


class Wrapper:
    def __init__(self, model):
        self.model = model
        self.ctx = torch.autocast("cuda", torch.float16)

    @torch.autocast("cuda", dtype=torch.float16)
    def compute(self, x):
        return self.model(x).float().mean()

    def run(self, loader):
        for x in loader:
            self.compute(x).backward()  # expect: PA201
