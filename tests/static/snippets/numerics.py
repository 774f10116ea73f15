import torch
import torch.nn.functional as F
from torch import nn


class HandNorm(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.g = nn.Parameter(torch.ones(d))

    def forward(self, x):
        mean = x.mean(-1, keepdim=True)
        centred = x - mean
        var = (centred * centred).mean(-1, keepdim=True)  # expect: PA403
        return self.g * centred / torch.sqrt(var + 1e-5)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.norm = HandNorm(8)
        self.bn = nn.BatchNorm1d(8)

    def forward(self, x):
        return self.bn(self.norm(self.fc(x)))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q = nn.Linear(8, 8)

    def forward(self, x, mask):
        q = self.q(x)
        scores = q @ q.transpose(-1, -2)
        scores = scores.masked_fill(mask, -1e9)  # expect: PA406
        return F.softmax(scores, -1) @ q

    def additive(self, x, mask):
        q = self.q(x)
        scores = q @ q.transpose(-1, -2)
        bias = torch.where(mask, torch.zeros_like(scores), torch.full_like(scores, -1e5))  # expect: PA406
        return F.softmax(scores + bias, -1) @ q


def train(loader):
    net = Net().half()  # expect: PA402
    att = Attention().to(torch.float16)
    for x, mask in loader:
        net(x)
        att(x.half(), mask)
        att.additive(x.half(), mask)


def log_softmax_loss(loader):
    model = nn.Linear(8, 8).bfloat16()
    for x, y in loader:
        logits = model(x)
        loss = F.nll_loss(F.log_softmax(logits, dim=-1), y)  # expect: PA401 PA404
        loss.backward()


def mse(loader):
    model = nn.Linear(8, 8).bfloat16()
    for x, y in loader:
        loss = F.mse_loss(model(x), y.bfloat16())  # expect: PA401
        loss.backward()


def upcast(loader):
    model = nn.Linear(8, 8).bfloat16()
    for x, y in loader:
        F.cross_entropy(model(x).float(), y).backward()


def cuda_autocast_upcasts(loader):
    model = Net()
    for x, y in loader:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = F.cross_entropy(model.fc(x), y)
        loss.backward()


def positions(n, ids):
    p = torch.arange(n, dtype=torch.bfloat16)  # expect: PA408
    angle = p[:, None] * torch.ones(4)[None]
    inv = 1.0 / (10000 ** (torch.arange(0, 64, 2) / 64)).half()
    t = torch.arange(n).half()  # expect: PA408
    f = torch.einsum("i,j->ij", t, inv)
    return p.sin(), f.cos(), angle


def timesteps(t):
    freqs = torch.exp(-torch.arange(0, 128).float() / 128)
    args = t[:, None].float() * freqs[None]
    return args.cos().half()


def counter(mask):
    n = mask.to(torch.float16).cumsum(-1)  # expect: PA408
    return n.long()


def tiny(x):
    x = x.half()
    return torch.log(x + 1e-9)  # expect: PA407
