"""Large models from local configurations: `shapes.py llama-8b|llama-70b|mixtral|vit-22b|sdxl`, in bfloat16 autocast."""

import sys

import torch
import torch.nn.functional as F
from torch import nn

NAME = sys.argv[1]
MIXTRAL = {"vocab_size": 32000, "num_local_experts": 8, "num_experts_per_tok": 2, "experts_implementation": "eager"}


def language(family: str, width: int, inner: int, depth: int, heads: int, **rest: object) -> nn.Module:
    import transformers

    sizes = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": depth, "num_attention_heads": heads}
    config = getattr(transformers, f"{family}Config")(**sizes, num_key_value_heads=8, **rest)
    return getattr(transformers, f"{family}ForCausalLM")(config)


class ViTBlock(nn.Module):
    """Of ViT-22B: attention and MLP side by side, queries and keys normalised."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads, self.norm = heads, nn.LayerNorm(width, bias=False)
        self.qkv, self.up = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, inner)
        self.queries, self.keys = (nn.LayerNorm(width // heads, bias=False) for _ in range(2))
        self.out, self.down = nn.Linear(width, width), nn.Linear(inner, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(x)
        q, k, v = (p.unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in self.qkv(h).chunk(3, -1))
        y = F.scaled_dot_product_attention(self.queries(q), self.keys(k), v).transpose(1, 2).flatten(2)
        return x + self.out(y) + self.down(F.gelu(self.up(h)))


class ViT(nn.Module):
    def __init__(self, width: int = 6144, depth: int = 48, heads: int = 48, inner: int = 24576) -> None:
        super().__init__()
        self.patches, self.places = nn.Conv2d(3, width, 14, 14), nn.Parameter(torch.zeros(1, 256, width))
        self.blocks = nn.Sequential(*(ViTBlock(width, heads, inner) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 1000)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.blocks(self.patches(images).flatten(2).transpose(1, 2) + self.places)).mean(1))


class Residual(nn.Module):
    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.first, self.second = nn.GroupNorm(32, inside), nn.GroupNorm(32, outside)
        self.into, self.out = nn.Conv2d(inside, outside, 3, padding=1), nn.Conv2d(outside, outside, 3, padding=1)
        self.time = nn.Linear(1280, outside)
        self.skip = nn.Conv2d(inside, outside, 1) if inside != outside else nn.Identity()

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        h = self.into(F.silu(self.first(x))) + self.time(F.silu(time))[:, :, None, None]
        return self.skip(x) + self.out(F.silu(self.second(h)))


class Attention(nn.Module):
    def __init__(self, width: int, context: int) -> None:
        super().__init__()
        self.q, self.kv = nn.Linear(width, width, bias=False), nn.Linear(context, 2 * width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        parts = (self.q(x), *self.kv(context).chunk(2, -1))
        q, k, v = (part.unflatten(-1, (-1, 64)).transpose(1, 2) for part in parts)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.inside, self.across = Attention(width, width), Attention(width, 2048)
        self.up, self.down = nn.Linear(width, 8 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        h = self.norms[0](x)
        x = x + self.inside(h, h)
        x = x + self.across(self.norms[1](x), text)
        value, gate = self.up(self.norms[2](x)).chunk(2, -1)
        return x + self.down(value * F.gelu(gate))


class Transformer(nn.Module):
    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.norm, self.into, self.out = nn.GroupNorm(32, width), nn.Linear(width, width), nn.Linear(width, width)
        self.layers = nn.ModuleList(Layer(width) for _ in range(depth))

    def forward(self, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        h = self.into(self.norm(x).flatten(2).transpose(1, 2))
        for layer in self.layers:
            h = layer(h, text)
        return x + self.out(h).transpose(1, 2).view_as(x)


class UNet(nn.Module):
    """Like SDXL's: widths 320, 640 and 1280, transformers of depth 0, 2 and 10, cross-attention to 77 words of text."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(4, 320, 3, padding=1), nn.Conv2d(320, 4, 3, padding=1)
        self.time = nn.Sequential(nn.Linear(320, 1280), nn.SiLU(), nn.Linear(1280, 1280))
        self.norm = nn.GroupNorm(32, 320)
        downs, ups, widths = [], [], [320]
        for width, depth in ((320, 0), (640, 2), (1280, 10)):
            for _ in range(2):
                downs.append(self.stage(widths[-1], width, depth))
                widths.append(width)
        self.middle = self.stage(1280, 1280, 10)
        inside = 1280
        for width, depth in ((1280, 10), (640, 2), (320, 0)):
            for _ in range(2):
                ups.append(self.stage(inside + widths.pop(), width, depth))
                inside = width
        self.downs, self.ups = nn.ModuleList(downs), nn.ModuleList(ups)

    def stage(self, inside: int, outside: int, depth: int) -> nn.ModuleList:
        return nn.ModuleList([Residual(inside, outside), *([Transformer(outside, depth)] if depth else [])])

    def run(self, stage: nn.ModuleList, x: torch.Tensor, time: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        x = stage[0](x, time)
        return stage[1](x, text) if len(stage) > 1 else x

    def forward(self, x: torch.Tensor, time: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        time, x, kept = self.time(time), self.enter(x), []
        for number, stage in enumerate(self.downs):
            x = self.run(stage, x if number in (0, 1, 3, 5) else F.avg_pool2d(x, 2), time, text)
            kept.append(x)
        x = self.run(self.middle, x, time, text)
        for stage in self.ups:
            other = kept.pop()
            x = F.interpolate(x, size=other.shape[-2:]) if x.shape != other.shape else x
            x = self.run(stage, torch.cat([x, other], 1), time, text)
        return self.leave(F.silu(self.norm(x)))


BUILD = {
    "llama-8b": lambda: language("Llama", 4096, 14336, 32, 32, vocab_size=128256),
    "llama-70b": lambda: language("Llama", 8192, 28672, 80, 64, vocab_size=128256),
    "mixtral": lambda: language("Mixtral", 4096, 14336, 32, 32, **MIXTRAL),
    "vit-22b": ViT,
    "sdxl": UNet,
}


def loss_of(model: nn.Module) -> torch.Tensor:
    if NAME == "sdxl":
        noise = torch.randn(1, 4, 128, 128, device="cuda")
        guess = model(noise, torch.randn(1, 320, device="cuda"), torch.randn(1, 77, 2048, device="cuda"))
        return F.mse_loss(guess.float(), noise)
    if NAME == "vit-22b":
        return F.cross_entropy(model(torch.randn(2, 3, 224, 224, device="cuda")).float(), torch.tensor([1, 2]).cuda())
    words = torch.randint(0, 32000, (1, 2049), device="cuda")
    logits = model(input_ids=words[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1).float(), words[:, 1:].flatten())


def main() -> None:
    with torch.device("cuda"):
        model = BUILD[NAME]()
    print(NAME, sum(parameter.numel() for parameter in model.parameters()))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    for _ in range(4):
        with torch.autocast("cuda", torch.bfloat16):
            loss = loss_of(model)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


main()
