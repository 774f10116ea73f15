import argparse

import torch
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--dtype", default="bf16", choices=["bf16", "fp16"])
args = parser.parse_args()
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def build():
    return nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))


def chosen_by_argparse():
    model = build().to(DTYPES[args.dtype])  # expect: PA101
    return torch.optim.AdamW(model.parameters(), lr=1e-4, eps=1e-5)  # expect: PA301


def method_cast_and_groups(device):
    model = build()
    model.bfloat16()  # expect: PA101
    groups = [
        {"params": [p for n, p in model.named_parameters() if "bias" not in n], "weight_decay": 0.1},
        {"params": [p for n, p in model.named_parameters() if "bias" in n], "weight_decay": 0.0},
    ]
    opt = torch.optim.SGD(groups, lr=0.1, momentum=0.9)  # expect: PA301
    opt.step()


def device_and_dtype(device):
    model = build().to(device, torch.bfloat16)  # expect: PA101
    opt = torch.optim.Adam(params=filter(lambda p: p.requires_grad, model.parameters()))  # expect: PA301
    return model, opt


class Trainer:
    def __init__(self, model, dtype=torch.bfloat16):
        self.model = model.to(dtype=dtype)  # expect: PA101
        self.opt = torch.optim.RMSprop(self.model.parameters())  # expect: PA301


def created_low():
    head = nn.Linear(8, 2, dtype=torch.bfloat16)  # expect: PA101
    return torch.optim.AdamW(head.parameters())  # expect: PA301


def by_hand_sgd(loader):
    model = build().to(torch.bfloat16)
    for x in loader:
        model(x).float().sum().backward()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(p.grad, alpha=-1e-4)  # expect: PA101
                p.grad = None


def from_name():
    model = build().to(torch.bfloat16)  # expect: PA101
    return torch.optim.Adagrad(model.parameters())  # expect: PA301


def plain_sgd_has_no_state():
    model = build().to(torch.bfloat16)  # expect: PA101
    return torch.optim.SGD(model.parameters(), lr=0.1)


def trained_by_ignite(loader):
    from ignite.engine import create_supervised_trainer

    model = build().to(torch.bfloat16)  # expect: PA101
    optimizer = torch.optim.AdamW(model.parameters())  # expect: PA301
    create_supervised_trainer(model, optimizer, torch.nn.functional.mse_loss).run(loader)
