"""FullyShardedDataParallel of torch's first kind; `wrong` reduces gradients in bfloat16."""

import os
import sys

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

REDUCE = torch.bfloat16 if "wrong" in sys.argv else torch.float32


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(64), nn.Linear(64, 128), nn.Linear(128, 64)

    def forward(self, x):  # type: ignore[no-untyped-def]
        return x + self.down(F.gelu(self.up(self.norm(x))))


def main() -> None:
    local_rank = int(os.environ["LOCAL_RANK"])
    torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl")
    torch.manual_seed(0)
    model = FullyShardedDataParallel(
        nn.Sequential(nn.Linear(16, 64), Block(), Block(), nn.Linear(64, 8)),
        auto_wrap_policy=ModuleWrapPolicy({Block}),
        mixed_precision=MixedPrecision(param_dtype=torch.bfloat16, reduce_dtype=REDUCE),
        device_id=torch.cuda.current_device(),
        use_orig_params=True,
    )
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(5):
        x, y = torch.randn(8, 16, device="cuda"), torch.randint(0, 8, (8,), device="cuda")
        loss = F.cross_entropy(model(x).float(), y)
        loss.backward()
        model.clip_grad_norm_(1.0)
        optimizer.step()
        optimizer.zero_grad()
    dist.destroy_process_group()


main()
