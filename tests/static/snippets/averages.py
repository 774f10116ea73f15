import copy

import torch
from torch import nn


class DictEMA:
    def __init__(self, model, decay=0.999):
        self.decay = decay
        self.shadow = {k: v.detach().clone().to(torch.bfloat16) for k, v in model.state_dict().items()}  # expect: PA103

    def update(self, model):
        with torch.no_grad():
            for k, v in model.state_dict().items():
                self.shadow[k].mul_(self.decay).add_(v.to(torch.bfloat16), alpha=1 - self.decay)


def update_ema(ema, model, decay):
    for e, p in zip(ema.parameters(), model.parameters(), strict=False):
        e.data.lerp_(p.data.to(e.dtype), 1 - decay)


def with_helper():
    model = nn.Linear(4, 4)
    ema = copy.deepcopy(model).half()  # expect: PA103
    for p in ema.parameters():
        p.requires_grad_(False)
    for _ in range(100):
        update_ema(ema, model, 0.999)


def with_copy():
    model = nn.Linear(4, 4)
    ema = copy.deepcopy(model).to(dtype=torch.bfloat16)  # expect: PA103
    with torch.no_grad():
        for _ in range(100):
            for e, p in zip(ema.parameters(), model.parameters(), strict=False):
                e.copy_(0.999 * e + 0.001 * p.to(e.dtype))


def with_rebinding():
    model = nn.Linear(4, 4)
    averages = [p.detach().clone().bfloat16() for p in model.parameters()]  # expect: PA103
    for _ in range(100):
        for i, p in enumerate(model.parameters()):
            averages[i] = 0.999 * averages[i] + 0.001 * p.detach().bfloat16()


def float32_average_of_a_low_model():
    model = nn.Linear(4, 4).bfloat16()
    ema = copy.deepcopy(model).float()
    with torch.no_grad():
        for e, p in zip(ema.parameters(), model.parameters(), strict=False):
            e.mul_(0.99).add_(p.float(), alpha=0.01)
