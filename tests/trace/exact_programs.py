"""Small training programs for the exact step: written once, run as they are and, from the same start, in float64."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

Optimizer = Callable[[list[Tensor]], torch.optim.Optimizer]


def up(x: Tensor) -> Tensor:
    """float32 of what is lower: what `.float()` does, except in the run in float64."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


class Norm(nn.Module):
    """An RMS norm written by hand, in float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        h = up(x)
        return self.weight * (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


class Language(nn.Module):
    """Embedding, attention with a mask, dropout, a gated block, a head."""

    def __init__(self, dropout: float = 0.0, rotary: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(31, 16, padding_idx=0)
        self.qkv = nn.Linear(16, 48)
        self.out = nn.Linear(16, 16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.first, self.second = Norm(16), nn.LayerNorm(16)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(16, 31, bias=False)
        self.rotary = rotary

    def turned(self, x: Tensor) -> Tensor:
        """Rotary positions by complex numbers."""
        if not self.rotary:
            return x
        pairs = torch.view_as_complex(up(x).reshape(*x.shape[:-1], -1, 2))
        kind = pairs.real.dtype
        angles = torch.outer(torch.arange(x.shape[-2], dtype=kind), 0.1 ** torch.arange(pairs.shape[-1], dtype=kind))
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        h = self.dropout(self.embedding(x))
        q, k, v = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in self.qkv(self.first(h)).chunk(3, -1))
        h = h + self.out(
            F.scaled_dot_product_attention(self.turned(q), self.turned(k), v, is_causal=True)
            .transpose(1, 2)
            .flatten(-2)
        )
        h = h + self.down(F.silu(self.dropout(self.up(self.second(h)))))
        return self.head(h)


class Checkpointed(Language):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        h = self.embedding(x)
        h = checkpoint(lambda h: h + self.down(F.silu(self.up(self.second(h)))), h, use_reentrant=self.reentrant)
        return self.head(self.first(h))


class Scaled(torch.autograd.Function):
    """A Function with its own backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(x, factor)
        return x * factor.exp()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, factor = ctx.saved_tensors
        return grad * factor.exp(), (grad * x * factor.exp()).sum(tuple(range(x.dim() - factor.dim())))


class Writes(Language):
    """Views that are written to, index writes, a Function, sorting, a running sum."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.full((16,), 0.1))
        self.register_buffer("mean", torch.zeros(16))

    def forward(self, x: Tensor) -> Tensor:
        h = self.embedding(x) * 1.5
        h[:, ::2].mul_(0.7)
        h[:, 1] += self.down.bias
        h.index_add_(1, torch.tensor([0, 2]), h[:, 3:5].clone())
        h = Scaled.apply(h, self.factor)
        best, where = h.topk(3, dim=-1)
        h = h.scatter_add(-1, where, best) + h.sort(dim=1).values.cumsum(1) / 7
        h = torch.where(h > 0, h, 0.1 * h).masked_fill(x[..., None] == 3, 0.3)
        with torch.no_grad():
            self.mean.lerp_(h.mean((0, 1)).to(self.mean.dtype), 0.1)
        return self.head(self.down(F.gelu(self.up(h))) - self.mean)


class Image(nn.Module):
    """Convolution, batch norm, pooling; the input is made of the same batch of tokens."""

    def __init__(self, exactly_one_is_largest: bool = True) -> None:
        super().__init__()
        self.exactly_one_is_largest = exactly_one_is_largest
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 31)

    def forward(self, x: Tensor) -> Tensor:
        picture = (x[:, :8, None].to(self.one.weight.dtype) * x[:, None, :8] / 97).unsqueeze(1).repeat(1, 3, 1, 1)
        pool = F.max_pool2d if self.exactly_one_is_largest else F.avg_pool2d
        h = pool(F.relu(self.norm(self.one(picture))), 2)
        return self.head(self.two(h).mean((2, 3)))[:, None].expand(-1, x.shape[1], -1)


class Recurrent(nn.Module):
    """Recurrent layers of torch's own, and a cell in a loop."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.embedding = nn.Embedding(31, 16)
        self.layer = {"gru": nn.GRU, "rnn": nn.RNN}[kind](16, 12, num_layers=2, batch_first=True)
        self.cell, self.head = nn.LSTMCell(12, 12), nn.Linear(12, 31)

    def forward(self, x: Tensor) -> Tensor:
        h, _ = self.layer(self.embedding(x))
        state, out = None, []
        for at in range(h.shape[1]):
            state = self.cell(h[:, at], state)
            out.append(state[0])
        return self.head(torch.stack(out, 1))


class Tied(Language):
    """The head is the embedding."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(self.embedding(x))
        return F.linear(h + self.down(F.silu(self.up(h))), self.embedding.weight)


class Squeezed(Language):
    """The user's Function, a custom norm and a gradient that a hook changes."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.full((16,), 0.1))
        self.factor.register_hook(lambda grad: grad * 0.5)

    def forward(self, x: Tensor) -> Tensor:
        h = Scaled.apply(self.first(self.embedding(x)), self.factor)
        return self.head(self.down(Scaled.apply(self.up(h), self.up.bias)))


class Upsampled(nn.Module):
    """A transposed and a grouped convolution, group norm, interpolation."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.mix = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.up, self.norm, self.head = nn.ConvTranspose2d(8, 8, 2, stride=2), nn.GroupNorm(2, 8), nn.Linear(8, 31)

    def forward(self, x: Tensor) -> Tensor:
        picture = (x[:, :8, None].to(self.down.weight.dtype) * x[:, None, :8] / 97).unsqueeze(1).repeat(1, 3, 1, 1)
        h = F.gelu(self.norm(self.up(self.mix(self.down(picture)))))
        h = F.interpolate(h, scale_factor=0.5, mode="bilinear", align_corners=False)
        return self.head(h.mean((2, 3)))[:, None].expand(-1, x.shape[1], -1)


@dataclass
class Program:
    """A model, how it is cast, and what its loop does."""

    model: Callable[[], nn.Module]
    optimizer: Optimizer
    dtype: torch.dtype = torch.float32
    autocast: torch.dtype | None = None
    scaler: bool = False
    clip: float = 0.0
    micro_batches: int = 1
    masters: bool = False
    """The optimizer steps on float32 copies."""
    average: float = 0.0
    """How much of each new weight goes into an average, in float32."""
    penalty: float = 0.0
    """Of the size of the gradients, which are differentiated for it."""
    exact: bool = False
    """This is the run in float64."""
    trained: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.net = self.model().to(self.dtype)
        self.trained = list(self.net.parameters())
        if self.masters:
            self.trained = [p.detach().clone().float().requires_grad_() for p in self.trained]
        self.steps = self.optimizer(self.trained)
        self.averages = [p.detach().clone().float() for p in self.trained] if self.average else []
        self.scale = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=self.scaler)

    def widen(self) -> None:
        """From here on everything is float64, beginning with what it is now."""
        self.exact = True
        if self.masters:
            for master in self.trained:
                master.data = master.data.double()
        self.net.double()
        self.averages = [mean.double() for mean in self.averages]
        if self.masters:  # the step begins with the copy of them that the last one ended with
            with torch.no_grad():
                for master, weight in zip(self.trained, self.net.parameters(), strict=True):
                    weight.copy_(master)
        for state in self.steps.state.values():
            for name, value in state.items():
                if isinstance(value, Tensor) and name != "step":
                    state[name] = value.double()

    def step(self, number: int) -> None:
        torch.manual_seed(100 + number)
        for _ in range(self.micro_batches):
            batch = torch.randint(0, 31, (4, 9))
            with self.region():
                logits = self.net(batch[:, :-1])
            loss = F.cross_entropy(up(logits).flatten(0, 1), batch[:, 1:].flatten()) / self.micro_batches
            if self.penalty:
                parts = torch.autograd.grad(loss, list(self.net.parameters()), create_graph=True, allow_unused=True)
                loss = loss + self.penalty * sum(up(part).square().sum() for part in parts if part is not None)
            self.scale.scale(loss).backward()
        if self.masters:
            for master, weight in zip(self.trained, self.net.parameters(), strict=True):
                master.grad = weight.grad.to(master.dtype)
                weight.grad = None
        if self.clip:
            self.scale.unscale_(self.steps)
            nn.utils.clip_grad_norm_(self.trained, self.clip)
        self.scale.step(self.steps)
        self.scale.update()
        self.steps.zero_grad()
        with torch.no_grad():
            for mean, p in zip(self.averages, self.trained, strict=bool(self.averages)):
                mean.lerp_(p.to(mean.dtype), self.average)
        if self.masters:
            with torch.no_grad():
                for master, weight in zip(self.trained, self.net.parameters(), strict=True):
                    weight.copy_(master)

    @contextlib.contextmanager
    def region(self) -> Iterator[None]:
        with torch.autocast(
            "cpu", self.autocast or torch.bfloat16, enabled=self.autocast is not None and not self.exact
        ):
            yield


def adamw(**options: Any) -> Optimizer:
    return lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, **options)


def sgd(**options: Any) -> Optimizer:
    return lambda parameters: torch.optim.SGD(parameters, lr=1e-2, **options)


BF16, F16 = torch.bfloat16, torch.float16
PROGRAMS: dict[str, Callable[[], Program]] = {
    "bfloat16, for-loop": lambda: Program(Language, adamw(foreach=False), BF16),
    "bfloat16, foreach": lambda: Program(Language, adamw(foreach=True), BF16),
    "bfloat16, fused": lambda: Program(Language, adamw(fused=True), BF16),
    "bfloat16, amsgrad": lambda: Program(Language, adamw(amsgrad=True), BF16),
    "float32, momentum": lambda: Program(Language, sgd(momentum=0.9, nesterov=True)),
    "float32, clipped": lambda: Program(Language, sgd(momentum=0.9, foreach=True), clip=0.1),
    "float32, fused sgd": lambda: Program(Language, sgd(fused=True, momentum=0.9)),
    "autocast": lambda: Program(Language, adamw(), autocast=BF16),
    "autocast, rotary": lambda: Program(lambda: Language(rotary=True), adamw(), autocast=BF16),
    "float16, scaler": lambda: Program(Language, adamw(), autocast=F16, scaler=True),
    "float16, scaler, clipped": lambda: Program(Language, sgd(), autocast=F16, scaler=True, clip=0.2),
    "dropout": lambda: Program(lambda: Language(dropout=0.2), adamw(), BF16),
    "micro-batches": lambda: Program(Language, adamw(), BF16, micro_batches=3),
    "many micro-batches": lambda: Program(Language, adamw(), BF16, micro_batches=7),
    "many micro-batches, float32": lambda: Program(Language, adamw(), autocast=BF16, micro_batches=7),
    "checkpoint": lambda: Program(lambda: Checkpointed(False), adamw(), BF16),
    "reentrant checkpoint": lambda: Program(lambda: Checkpointed(True), adamw(), BF16),
    "writes and views": lambda: Program(Writes, sgd(momentum=0.9)),
    "image": lambda: Program(Image, adamw()),
    "image, bfloat16": lambda: Program(lambda: Image(False), sgd(momentum=0.9), autocast=BF16),
    "masters": lambda: Program(Language, adamw(), BF16, masters=True),
    "rmsprop": lambda: Program(Language, lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.5, centered=True), BF16),
    "adagrad": lambda: Program(Language, lambda p: torch.optim.Adagrad(p, lr=1e-3), BF16),
    "gru": lambda: Program(lambda: Recurrent("gru"), adamw()),
    "rnn, bfloat16": lambda: Program(lambda: Recurrent("rnn"), adamw(), BF16),
    "tied weights": lambda: Program(Tied, adamw(), autocast=BF16),
    "function and hook": lambda: Program(Squeezed, sgd(momentum=0.9), BF16),
    "upsampled": lambda: Program(Upsampled, adamw()),
    "upsampled, autocast": lambda: Program(Upsampled, sgd(), autocast=BF16),
    "average of the weights": lambda: Program(Language, adamw(), BF16, average=0.1),
    "average, float32": lambda: Program(Language, sgd(momentum=0.9), autocast=BF16, average=0.01),
    "gradient penalty": lambda: Program(Tied, adamw(), penalty=0.01),
    "gradient penalty, bfloat16": lambda: Program(Squeezed, adamw(), BF16, penalty=0.01),
    "adadelta": lambda: Program(Language, lambda p: torch.optim.Adadelta(p), BF16),
    "adamax": lambda: Program(Language, lambda p: torch.optim.Adamax(p, lr=1e-3), BF16),
    "nadam": lambda: Program(Language, lambda p: torch.optim.NAdam(p, lr=1e-3), BF16),
    "radam": lambda: Program(Language, lambda p: torch.optim.RAdam(p, lr=1e-3), BF16),
    "bfloat16, maximize": lambda: Program(Language, adamw(maximize=True, amsgrad=True, foreach=True), BF16),
    "asgd": lambda: Program(Language, lambda p: torch.optim.ASGD(p, lr=1e-2)),
    "fused, scaler, clipped": lambda: Program(Language, adamw(fused=True), autocast=F16, scaler=True, clip=0.2),
}
