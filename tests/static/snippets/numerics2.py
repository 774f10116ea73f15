import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX = 1e6
EPS = 1e-10


class RMS(nn.Module):
    def forward(self, x: Tensor):
        return x * torch.rsqrt(torch.mean(x**2, dim=-1, keepdim=True) + 1e-6)  # expect: PA403


class RMS2(nn.Module):
    def forward(self, x):
        rms = x.pow(2).mean(-1, keepdim=True).add(1e-6).sqrt()  # expect: PA403
        return x / rms


class RMS3(nn.Module):
    def forward(self, x):
        ms = x.square().mean(-1, True)  # expect: PA403
        return x * (ms + 1e-6) ** -0.5


class Upcast(nn.Module):
    def forward(self, x):
        h = x.to(torch.float32)
        return (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)).type_as(x)


class Router(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(8, 4)
        self.norms = nn.ModuleList([RMS(), RMS2(), RMS3(), Upcast()])

    def forward(self, x):
        for norm in self.norms:
            x = norm(x)
        weights = F.softmax(self.gate(x), dim=-1)  # expect: PA404
        w, idx = torch.topk(weights, 2)
        return w

    def sample(self, x):
        p = self.gate(x).softmax(-1)  # expect: PA404
        return torch.multinomial(p, 1)

    def entropy(self, x):
        p = self.gate(x).softmax(-1)  # expect: PA404
        return -(p * p.log()).sum(-1).mean()


def drive(x):
    r = Router().bfloat16()
    r(x.bfloat16()).sum()
    r.sample(x)
    r.entropy(x)


class Rotary(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.register_buffer("inv_freq", 1.0 / (10000 ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)))

    def forward(self, x):
        t = torch.arange(x.shape[1], device=x.device, dtype=self.inv_freq.dtype)  # expect: PA408
        freqs = torch.einsum("i,j->ij", t, self.inv_freq)
        emb = torch.cat([freqs, freqs], dim=-1)
        return emb.cos(), emb.sin()


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.rotary = Rotary(8)
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        cos, sin = self.rotary(x)
        return self.fc(x) * cos + sin


def rotary_cast_with_model(x):
    model = Block().to(torch.bfloat16)
    return model(x)


def autocast_positions(x, inv):
    with torch.autocast("cuda", dtype=torch.bfloat16):
        t = torch.arange(4096, dtype=torch.float32)
        freqs = torch.outer(t, inv.float())
        angles = t[:, None].float() @ torch.ones(1, 4)  # expect: PA408
        return angles.cos(), freqs


class Att(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x, mask):
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        att = torch.matmul(q, k.transpose(1, 2))
        bias = torch.full((4, 4), -MAX, dtype=q.dtype)  # expect: PA406
        filled = att.masked_fill_(mask == 0, -MAX)  # expect: PA406
        ok = att.masked_fill(mask == 0, torch.finfo(att.dtype).min)
        ok2 = att.masked_fill(mask == 0, float("-inf"))
        wrong = att.masked_fill(mask == 0, torch.finfo(torch.float32).min)  # expect: PA406
        return (filled + bias + ok + ok2 + wrong).softmax(-1) @ v


def attend(x, mask):
    with torch.autocast("cuda", dtype=torch.float16):
        return Att()(x, mask)


def bce(loader):
    net = nn.Sequential(nn.Linear(4, 1), nn.Sigmoid())
    for x, y in loader:
        with torch.autocast("cuda", dtype=torch.float16):
            loss = F.binary_cross_entropy(net(x), y)  # expect: PA705 PA409


def division(x):
    h = x.half()
    return h / (h.abs().sum() + EPS)  # expect: PA407


def disabled(x):
    net = nn.Linear(4, 4)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        y = net(x)
        with torch.autocast("cuda", enabled=False):  # expect: PA703
            z = y.exp().sum()
        with torch.autocast("cuda", enabled=False):
            w = y.float().exp().sum()
    return z, w


def gradient_norm(model):
    total = 0.0
    for p in model.parameters():
        total += p.grad.half().norm(2) ** 2  # expect: PA209
    return 1.0 / (total.sqrt() + 1e-6)
