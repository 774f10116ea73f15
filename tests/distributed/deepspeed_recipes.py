"""Training loops of DeepSpeed engines, and what inspection of the engine's own objects finds."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from pair import Inspected, Trained
from recipes import DTYPES, STEPS, Net, batch, moments, name, names

logging.disable(logging.WARNING)
warnings.simplefilter("ignore")

import deepspeed  # noqa: E402
import deepspeed.ops  # noqa: E402
from deepspeed.accelerator import get_accelerator  # noqa: E402

# A collective through shared memory, which DeepSpeed would compile for a minute when it is first initialised on a CPU.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def allow_float16() -> None:
    """DeepSpeed asks the CPU for AVX512_FP16, which its float16 engine does not need to run."""
    accelerator = get_accelerator()
    accelerator.is_fp16_supported = lambda: True
    accelerator.supported_dtypes = lambda: [torch.float32, torch.bfloat16, torch.float16]


def engine(
    stage: int,
    precision: str = "",
    accumulate: str = "",
    communicate: str = "",
    autocast: str = "",
    optimizer: str = "AdamW",
    masters: bool = False,
    states: bool = False,
    micro_batches: int = 2,
    loss_scale: float = 0,
    scale_power: int = 8,
    grouped: bool = False,
    steps: int = STEPS,
) -> Trained:
    if precision == "fp16":
        allow_float16()
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 8,
        "gradient_accumulation_steps": micro_batches,
        "zero_optimization": {"stage": stage, "reduce_bucket_size": 10000, "allgather_bucket_size": 10000},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
        "gradient_clipping": 1.0,
    }
    if precision:
        config[precision] = {"enabled": True}
    if precision == "fp16":
        config["fp16"].update({"initial_scale_power": scale_power, "loss_scale": loss_scale})
    if accumulate:
        config["data_types"] = {"grad_accum_dtype": accumulate}
    if communicate:
        config["communication_data_type"] = communicate
    if autocast:
        config["torch_autocast"] = {"enabled": True, "dtype": autocast}
    if masters:
        config[precision][f"{precision}_master_weights_and_grads"] = True
    if states:
        config[precision]["bf16_optimizer_states"] = True
    model = Net()
    if optimizer == "DeepSpeedCPUAdam":
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        config["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
        inner: Any = DeepSpeedCPUAdam(model.parameters(), lr=1e-3, fp32_optimizer_states=not states)
    else:
        rest = [p for n, p in model.named_parameters() if not n.startswith("embed")]
        groups: Any = [{"params": model.embed.parameters()}, {"params": rest}] if grouped else model.parameters()
        inner = getattr(torch.optim, optimizer)(groups, lr=1e-3)
    made, wrapper, _, _ = deepspeed.initialize(model=model, optimizer=inner, config=config)
    low = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    losses: list[float] = []
    accumulated: set[str] = set()
    forward: set[str] = set()
    made.module.embed.register_forward_hook(lambda module, args, out: forward.add(name(module.weight.dtype)))
    for step in range(steps):
        for micro in range(micro_batches):
            x, y = batch(10 * step + micro)
            loss = F.cross_entropy(made(x.to(low)).float(), y)
            made.backward(loss)
            if micro < micro_batches - 1:
                accumulated |= names(gradients(made))
            losses.append(loss.item())
            made.step()
    inspected: Inspected = {
        "master_weight": names(masters_of(made)),
        "optimizer_state": moments(inner),
        "forward_weight": forward,
        "gradient_reduction": {name(made.communication_data_type)},
        "loss": {"float32"},
    }
    if micro_batches > 1:
        inspected["gradient_accumulation"] = accumulated
    if precision == "fp16":
        assert isinstance(getattr(wrapper, "cur_scale", None) or wrapper.loss_scale, int | float)
        inspected["loss_scale"] = {"float64"}  # a Python number
    return Trained(losses, inspected, [*masters_of(made)])


def masters_of(made: Any) -> list[torch.Tensor]:
    """The tensors that the inner optimizer updates, by the name each stage gives them."""
    wrapper = made.optimizer
    for attribute in ("single_partition_of_fp32_groups", "fp32_groups_flat_partition", "fp32_partitioned_groups_flat"):
        if hasattr(wrapper, attribute):
            return list(getattr(wrapper, attribute))
    if hasattr(wrapper, "fp32_groups"):
        return [t for group in wrapper.fp32_groups for t in group]
    return list(made.module.parameters())


def gradients(made: Any) -> list[Any]:
    """Where each stage keeps what the micro-batches so far add up to."""
    wrapper = made.optimizer
    flat = getattr(wrapper, "grad_partitions_flat_buffer", None)
    if flat is not None:
        return [flat]
    if type(wrapper).__name__ == "BF16_Optimizer":
        return [*wrapper.fp32_groups_gradients_flat]
    kept = [t for group in (getattr(wrapper, "all_grad_tensors", None) or {}).values() for t in group or ()]
    kept = kept or [t for group in (getattr(wrapper, "averaged_gradients", None) or {}).values() for t in group or ()]
    kept += list((getattr(wrapper, "accumulated_grads_in_cpu", None) or {}).values())
    return kept or [getattr(p, "grad_accum", None) if p.grad is None else p.grad for p in made.module.parameters()]


__all__ = ["DTYPES", "engine"]
