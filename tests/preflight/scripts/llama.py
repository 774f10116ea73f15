"""A Llama of any size in bfloat16, sharded over data ranks, each of them over tensor ranks: FSDP2 and DTensor."""

import os
import sys

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.utils.checkpoint import checkpoint

WIDTH, DEPTH, HEADS, PAIRS, INNER, WORDS, TENSOR, LENGTH = (int(word) for word in sys.argv[1:9])
"""PAIRS: heads of keys and values. TENSOR: ranks that share a layer."""
REDUCE = torch.bfloat16 if "wrong" in sys.argv else torch.float32


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.size = WIDTH // HEADS
        self.wq = nn.Linear(WIDTH, WIDTH, bias=False)
        self.wk, self.wv = (nn.Linear(WIDTH, PAIRS * self.size, bias=False) for _ in range(2))
        self.wo = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x):  # type: ignore[no-untyped-def]
        q, k, v = (layer(x).unflatten(-1, (-1, self.size)).transpose(1, 2) for layer in (self.wq, self.wk, self.wv))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.wo(out.transpose(1, 2).flatten(2))


class Feedforward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w3 = (nn.Linear(WIDTH, INNER, bias=False) for _ in range(2))
        self.w2 = nn.Linear(INNER, WIDTH, bias=False)

    def forward(self, x):  # type: ignore[no-untyped-def]
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.feedforward = Attention(), Feedforward()
        self.before, self.after = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)

    def inside(self, x):  # type: ignore[no-untyped-def]
        x = x + self.attention(self.before(x))
        return x + self.feedforward(self.after(x))

    def forward(self, x):  # type: ignore[no-untyped-def]
        return checkpoint(self.inside, x, use_reentrant=False)


class Llama(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm, self.head = nn.RMSNorm(WIDTH), nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, words):  # type: ignore[no-untyped-def]
        x = self.words(words)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


COLUMNS = ("attention.wq", "attention.wk", "attention.wv", "feedforward.w1", "feedforward.w3")
PLAN = {name: ColwiseParallel() for name in COLUMNS}
PLAN |= {name: RowwiseParallel(output_layouts=Shard(1)) for name in ("attention.wo", "feedforward.w2")}
PLAN |= {name: SequenceParallel() for name in ("before", "after")}
PLAN |= {
    name: PrepareModuleInput(input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),))
    for name in ("attention", "feedforward")
}
ENDS = {
    "words": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
    "norm": SequenceParallel(),
    "head": ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate()),
}


def main() -> None:
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl")
    mesh = init_device_mesh("cuda", (dist.get_world_size() // TENSOR, TENSOR), mesh_dim_names=("data", "tensor"))
    with torch.device("meta"):
        model = Llama()
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=REDUCE)
    parallelize_module(model, mesh["tensor"], ENDS)
    for block in model.blocks:
        parallelize_module(block, mesh["tensor"], PLAN)
        fully_shard(block, mesh=mesh["data"], mp_policy=policy)
    fully_shard(model, mesh=mesh["data"], mp_policy=policy)
    model.to_empty(device="cuda")
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.02)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for _ in range(4):
        words = torch.randint(0, WORDS, (1, LENGTH + 1), device="cuda")
        logits = model(words[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1).float(), words[:, 1:].reshape(-1))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    dist.destroy_process_group()


main()
