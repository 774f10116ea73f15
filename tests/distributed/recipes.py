"""Training loops under DDP, FSDP1, FSDP2 and tensor parallel, and what inspection of their own objects finds."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from pair import Inspected, Trained
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FullyShardedDataParallel,
    MixedPrecision,
    MixedPrecisionPolicy,
    ShardingStrategy,
    fully_shard,
)
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

STEPS = 4
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Net(nn.Module):
    def __init__(self, batch_norm: bool = False) -> None:
        super().__init__()
        self.embed = nn.Linear(16, 24)
        self.statistics = nn.BatchNorm1d(24) if batch_norm else nn.Identity()
        self.blocks = nn.ModuleList(Block(24) for _ in range(2))
        self.head = nn.Linear(24, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.statistics(self.embed(x))
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def names(tensors: Iterable[Any]) -> set[str]:
    return {name(t.dtype) for t in tensors if isinstance(t, torch.Tensor) and t.is_floating_point()}


def moments(optimizer: torch.optim.Optimizer) -> set[str]:
    """What the optimizer keeps beside its step counters."""
    return names(t for held in optimizer.state.values() for t in held.values() if torch.is_tensor(t) and t.dim())


def local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor


def batch(seed: int, width: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 * torch.distributed.get_rank() + seed)
    return torch.randn(8, width, generator=generator), torch.randint(0, 4, (8,), generator=generator)


def loop(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    micro_batches: int = 1,
    scaler: Any = None,
    waits: Callable[[bool], Any] = lambda last: contextlib.nullcontext(),
    between: Callable[[], None] = lambda: None,
    autocast: str | None = None,
    data: torch.dtype | None = None,
) -> list[float]:
    """Four steps; the loss is computed in float32."""
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        for micro in range(micro_batches):
            x, y = batch(10 * step + micro)
            low = DTYPES[autocast] if autocast else torch.bfloat16
            with waits(micro == micro_batches - 1):
                with torch.autocast("cpu", dtype=low, enabled=autocast is not None):
                    out = model(x if data is None else x.to(data))
                loss = F.cross_entropy(out.float(), y) / micro_batches
                (scaler.scale(loss) if scaler else loss).backward()
            if micro < micro_batches - 1:
                between()
            losses.append(loss.item())
        if scaler:
            scaler.step(optimizer)
            scaler.update()
        else:
            optimizer.step()
    return losses


# -- DistributedDataParallel


def ddp(
    hook: str = "",
    dtype: str = "float32",
    bucket_view: bool = False,
    zero: bool = False,
    micro_batches: int = 1,
    autocast: str | None = None,
    batch_norm: bool = False,
    static_graph: bool = False,
) -> Trained:
    model = DistributedDataParallel(
        Net(batch_norm).to(DTYPES[dtype]), gradient_as_bucket_view=bucket_view, static_graph=static_graph
    )
    if hook == "powerSGD_hook":
        state = powerSGD_hook.PowerSGDState(None, 1, start_powerSGD_iter=2, min_compression_rate=0.5)
        model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    elif hook:
        model.register_comm_hook(None, getattr(default_hooks, hook))
    if zero:
        optimizer: Any = ZeroRedundancyOptimizer(model.parameters(), torch.optim.AdamW, lr=1e-3)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-4)
    accumulated: set[str] = set()

    def look() -> None:
        accumulated.update(names(p.grad for p in model.parameters()))

    losses = loop(
        model,
        optimizer,
        micro_batches=micro_batches,
        waits=lambda last: contextlib.nullcontext() if last else model.no_sync(),
        between=look,
        autocast=autocast,
        data=DTYPES[dtype],
    )
    inspected: Inspected = {
        "master_weight": names(model.parameters()),
        "optimizer_state": moments(optimizer.optim if zero else optimizer),
        "gradient": names(p.grad for p in model.parameters()),
        "gradient_reduction": {"float16"}
        if hook == "fp16_compress_hook"
        else names(p.grad for p in model.parameters()),
        "loss": {"float32"},
    }
    if micro_batches > 1:
        inspected["gradient_accumulation"] = accumulated
    if batch_norm:
        inspected["norm_running_statistics"] = names(model.buffers())
    return Trained(losses, inspected, [*model.parameters()])


# -- FullyShardedDataParallel


def fsdp1(
    param: str = "",
    reduce: str = "",
    buffer: str = "",
    use_orig_params: bool = True,
    strategy: str = "FULL_SHARD",
    copies: int = 1,
    scaler: str = "",
    micro_batches: int = 1,
    no_sync: bool = False,
    dtype: str = "float32",
    batch_norm: bool = False,
    optimizer: str = "AdamW",
    wrap_blocks: bool = True,
) -> Trained:
    given = {"param_dtype": param, "reduce_dtype": reduce, "buffer_dtype": buffer}
    chosen = {key: DTYPES[value] for key, value in given.items() if value}
    model = FullyShardedDataParallel(
        Net(batch_norm).to(DTYPES[dtype]),
        auto_wrap_policy=ModuleWrapPolicy({Block}) if wrap_blocks else None,
        mixed_precision=MixedPrecision(**chosen) if chosen else None,
        use_orig_params=use_orig_params,
        sharding_strategy=ShardingStrategy[strategy],
        # Two processes that hold copies, each a shard of one, or two shards of a single copy.
        device_mesh=init_device_mesh("cpu", (copies, torch.distributed.get_world_size() // copies))
        if "HYBRID" in strategy
        else None,
        device_id=torch.device("cpu"),
    )
    settings: dict[str, Any] = {"momentum": 0.9} if optimizer == "SGD" else {"eps": 1e-4}
    updates = getattr(torch.optim, optimizer)(model.parameters(), lr=1e-3, **settings)
    scalers = {
        "": lambda: None,
        "sharded": lambda: ShardedGradScaler(device="cpu", init_scale=256.0),
        "plain": lambda: torch.amp.GradScaler("cpu", init_scale=256.0),
    }
    made = scalers[scaler]()
    handles = [m._handle for m in FullyShardedDataParallel.fsdp_modules(model) if m._handle is not None]
    accumulated: set[str] = set()

    def look() -> None:
        accumulated.update(names(h.flat_param.grad for h in handles))
        accumulated.update(names(getattr(h.flat_param, "_saved_grad_shard", None) for h in handles))

    losses = loop(
        model,
        updates,
        micro_batches=micro_batches,
        scaler=made,
        waits=lambda last: model.no_sync() if no_sync and not last else contextlib.nullcontext(),
        between=look,
        data=DTYPES[dtype],
    )
    inspected: Inspected = {
        "master_weight": names(h.flat_param for h in handles),
        "optimizer_state": moments(updates),
        "forward_weight": {name(h._fwd_bwd_param_dtype or h._orig_param_dtype) for h in handles},
        "gradient_reduction": {name(h._reduce_dtype or h._orig_param_dtype) for h in handles},
        "loss": {"float32"},
    }
    if micro_batches > 1:
        inspected["gradient_accumulation"] = accumulated
    if made is not None:
        inspected["loss_scale"] = {name(made._scale.dtype)}
    if batch_norm:
        inspected["norm_running_statistics"] = names(model.buffers())
    return Trained(losses, inspected, [h.flat_param for h in handles])


# -- fully_shard


def fsdp2(
    param: str = "",
    reduce: str = "",
    scaler: bool = False,
    micro_batches: int = 1,
    no_sync: bool = False,
    dtype: str = "float32",
    reshard: bool = True,
    optimizer: str = "AdamW",
    write_inside: bool = False,
) -> Trained:
    given = {"param_dtype": param, "reduce_dtype": reduce}
    policy = MixedPrecisionPolicy(**{key: DTYPES[value] for key, value in given.items() if value})
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    model = Net().to(DTYPES[dtype])
    if write_inside:
        for block in model.blocks:
            block.up.register_forward_pre_hook(shrink)
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard)
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard)
    settings: dict[str, Any] = {"momentum": 0.9} if optimizer == "SGD" else {"eps": 1e-4}
    updates = getattr(torch.optim, optimizer)(model.parameters(), lr=1e-3, **settings)
    made = torch.amp.GradScaler("cpu", init_scale=256.0) if scaler else None
    return _sharded(model, updates, made, micro_batches, no_sync, DTYPES[dtype])


@torch.no_grad()
def shrink(module: nn.Module, args: Any) -> None:
    """Writes to a gathered weight, whose storage FSDP2 frees before the step: reading it then ends the process."""
    module.weight.mul_(0.5)


def groups(model: nn.Module) -> list[Any]:
    """FSDP2's parameter groups."""
    states = (m._get_fsdp_state() for m in model.modules() if hasattr(m, "_get_fsdp_state"))
    return [state._fsdp_param_group for state in states if state._fsdp_param_group]


def _sharded(
    model: nn.Module, updates: Any, scaler: Any, micro_batches: int, no_sync: bool, data: torch.dtype
) -> Trained:
    accumulated: set[str] = set()

    def look() -> None:
        for param in (p for group in groups(model) for p in group.fsdp_params):
            kept = param.unsharded_accumulated_grad
            accumulated.update(names([kept] if kept is not None else [param.sharded_param.grad]))

    @contextlib.contextmanager
    def waits(last: bool) -> Any:
        model.set_requires_gradient_sync(last or not no_sync)
        yield

    losses = loop(model, updates, micro_batches=micro_batches, scaler=scaler, waits=waits, between=look, data=data)
    parameters = [p for group in groups(model) for p in group.fsdp_params]
    reduced = {group.mp_policy.reduce_dtype or group.mp_policy.param_dtype or data for group in groups(model)}
    inspected: Inspected = {
        "master_weight": names(p.sharded_param for p in parameters),
        "optimizer_state": moments(updates),
        "forward_weight": names(p._unsharded_param for p in parameters),
        "gradient": names(p.sharded_param.grad for p in parameters),
        "gradient_reduction": {name(dtype) for dtype in reduced},
        "loss": {"float32"},
    }
    if micro_batches > 1:
        inspected["gradient_accumulation"] = accumulated
    if scaler is not None:
        inspected["loss_scale"] = {name(scaler._scale.dtype)}
    return Trained(losses, inspected, [local(p) for p in model.parameters()])


# -- fully_shard over a tensor parallel mesh


def tensor_parallel(
    param: str = "", reduce: str = "", sequence: bool = True, shards: int = 1, sharded: bool = True
) -> Trained:
    """With `sequence`, the norm's gradient is summed over the tensor parallel ranks: pytorch/pytorch#190626."""
    given = {"param_dtype": param, "reduce_dtype": reduce}
    policy = MixedPrecisionPolicy(**{key: DTYPES[value] for key, value in given.items() if value})
    mesh = init_device_mesh("cpu", (shards, torch.distributed.get_world_size() // shards), mesh_dim_names=("dp", "tp"))
    model = Net()
    for block in model.blocks:
        plan: dict[str, Any] = {"up": ColwiseParallel(), "down": RowwiseParallel()}
        if sequence:
            plan = {
                "norm": SequenceParallel(sequence_dim=0),
                "up": ColwiseParallel(input_layouts=Shard(0)),
                "down": RowwiseParallel(output_layouts=Shard(0)),
            }
            enter = PrepareModuleInput(input_layouts=Shard(0), desired_input_layouts=Shard(0))
            plan = {"": enter, **plan} if False else plan
        parallelize_module(block, mesh["tp"], plan)
        if sequence:
            block.forward = functools.partial(_in_sequence, block, mesh["tp"])
        if sharded:
            fully_shard(block, mesh=mesh["dp"], mp_policy=policy)
    if sharded:
        fully_shard(model, mesh=mesh["dp"], mp_policy=policy)
    updates = torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-4, foreach=False)
    if sharded:
        return _sharded(model, updates, None, 1, False, torch.float32)
    losses = loop(model, updates)
    inspected: Inspected = {
        "master_weight": names(model.parameters()),
        "optimizer_state": moments(updates),
        "forward_weight": names(model.parameters()),
        "loss": {"float32"},
    }
    return Trained(losses, inspected, [local(p) for p in model.parameters()])


def _in_sequence(block: Block, mesh: Any, x: torch.Tensor) -> torch.Tensor:
    """The block on this rank's part of the rows; whole rows go in and come out."""
    part = DTensor.from_local(x, mesh, run_check=False).redistribute(placements=[Shard(0)]).to_local()
    out = block.down(torch.relu(block.up(block.norm(part))))
    out = out.to_local() if isinstance(out, DTensor) else out
    whole = DTensor.from_local(out, mesh, [Shard(0)], run_check=False)
    return x + whole.full_tensor()
