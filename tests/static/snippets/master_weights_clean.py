import copy

import torch
from torch import nn


def build():
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))


def frozen_base_with_adapter():
    base = build().to(torch.bfloat16)
    base.requires_grad_(False)
    adapter = nn.Linear(4, 4)
    both = nn.ModuleList([base, adapter])
    return torch.optim.AdamW([p for p in both.parameters() if p.requires_grad])


def may_be_either(flag):
    model = build().to(torch.bfloat16 if flag else torch.float32)
    return torch.optim.AdamW(model.parameters())


def inference(x):
    model = build().half().eval()
    with torch.no_grad():
        return model(x.half())


def export_after_training(loader):
    model = build()
    opt = torch.optim.AdamW(model.parameters())
    for x in loader:
        model(x).sum().backward()
        opt.step()
    model.half()
    torch.save(model.state_dict(), "model.pt")


def masters_by_hand():
    model = build().to(torch.bfloat16)
    masters = [p.detach().clone().float().requires_grad_(True) for p in model.parameters()]
    return torch.optim.AdamW(masters)


def cast_back():
    model = build().half()
    model.float()
    return torch.optim.Adam(model.parameters())


def copy_for_evaluation(model):
    half = copy.deepcopy(model).half()
    opt = torch.optim.Adam(model.parameters())
    return half, opt


def unknown_cast(model, cfg):
    model.to(cfg.dtype)
    return torch.optim.Adam(model.parameters())


def converted_by_somebody_else(model, convert):
    model.half()
    convert(model)
    return torch.optim.Adam(model.parameters())
