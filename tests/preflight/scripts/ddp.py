"""DistributedDataParallel over nccl; `mean` has a hook that sums as they are, `hook` a wrong one that compresses."""

import os
import sys

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel


def main() -> None:
    local_rank = int(os.environ["LOCAL_RANK"])
    torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl", device_id=torch.device("cuda", local_rank))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.GELU(), nn.Linear(32, 10)).to(local_rank)
    model = DistributedDataParallel(nn.SyncBatchNorm.convert_sync_batchnorm(model), device_ids=[local_rank])
    if sys.argv[1:] == ["hook"]:
        model.register_comm_hook(None, default_hooks.fp16_compress_hook)
    if sys.argv[1:] == ["mean"]:
        model.register_comm_hook(None, default_hooks.allreduce_hook)
    scaler = torch.amp.GradScaler("cuda")
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(5):
        x, y = torch.randn(8, 16, device=local_rank), torch.randint(0, 10, (8,), device=f"cuda:{local_rank}")
        with torch.autocast("cuda", torch.float16):
            out = model(x)
        loss = F.cross_entropy(out.float(), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        dist.barrier()
    dist.destroy_process_group()


main()
