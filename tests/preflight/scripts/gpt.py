"""A GPT trained as nanoGPT does it: `gpt.py bfloat16` or `float16 [unscaled]`; `wrong` trains bfloat16 weights."""

import math
import sys
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import nn

dtype = "bfloat16" if sys.argv[1] == "wrong" else sys.argv[1]
device = "cuda"
compile = True


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, c = x.size()
        q, k, v = (part.view(b, t, 4, c // 4).transpose(1, 2) for part in self.qkv(self.before(x)).split(c, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=0.1 if self.training else 0, is_causal=True)
        x = x + self.out(y.transpose(1, 2).contiguous().view(b, t, c))
        return x + self.down(F.gelu(self.up(self.between(x))))


class GPT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(64, 32), nn.Embedding(16, 32)
        self.blocks = nn.ModuleList(Block(32) for _ in range(2))
        self.last, self.head = nn.LayerNorm(32), nn.Linear(32, 64, bias=False)
        self.words.weight = self.head.weight

    def forward(self, idx: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pos = torch.arange(0, idx.size(1), dtype=torch.long, device=idx.device)
        x = self.words(idx) + self.places(pos)
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.last(x))
        return logits, F.cross_entropy(logits.float().view(-1, logits.size(-1)), targets.view(-1))


def main() -> None:
    torch.manual_seed(1337)
    torch.backends.cuda.matmul.allow_tf32 = True
    device_type = "cuda" if "cuda" in device else "cpu"
    ptdtype = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[dtype]
    ctx = nullcontext() if device_type == "cpu" else torch.amp.autocast(device_type=device_type, dtype=ptdtype)
    data = torch.randint(0, 64, (1000,))

    def get_batch() -> tuple[torch.Tensor, torch.Tensor]:
        ix = torch.randint(len(data) - 16, (4,))
        x, y = (torch.stack([data[i + shift : i + shift + 16] for i in ix]) for shift in (0, 1))
        if device_type == "cuda":
            return x.pin_memory().to(device, non_blocking=True), y.pin_memory().to(device, non_blocking=True)
        return x.to(device), y.to(device)

    model = GPT()
    model.to(device)
    if sys.argv[1] == "wrong":
        model.to(torch.bfloat16)
    scaler = torch.cuda.amp.GradScaler(enabled=dtype == "float16" and "unscaled" not in sys.argv)
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, betas=(0.9, 0.95), fused=device_type == "cuda")
    trained = torch.compile(model) if compile else model
    x, y = get_batch()
    for step in range(5):
        for group in optimizer.param_groups:
            group["lr"] = 6e-4 * 0.5 * (1 + math.cos(step / 5))
        for _ in range(2):
            with ctx:
                logits, loss = trained(x, y)
                loss = loss / 2
            assert logits.dtype is ptdtype
            x, y = get_batch()
            scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)


main()
