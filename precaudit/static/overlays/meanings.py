"""One table: what calling an imported function or class means, by its dotted name."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from precaudit.static.language.values import Value
from precaudit.static.overlays import frameworks, quantized
from precaudit.static.overlays import stdlib as standard
from precaudit.static.overlays.torch import calls as torch_calls
from precaudit.static.overlays.torch import flags, modules, regions, sharding

if TYPE_CHECKING:
    from precaudit.static.overlays.torch_model import Torch

Call = Callable[["Torch", str, list[Value], dict[str, Value], Any], Value]
"""torch, dotted name, arguments, keywords, node -> what the call returns."""


def unfamiliar(torch: Torch, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """A library that may do anything to a model handed to it, and to its dtypes."""
    for value in (*args, *kwargs.values()):
        modules.escape(torch, value)
    return torch.opaque_result([*args, *kwargs.values()], node)


def harmless(torch: Torch, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """A library that does not change the dtype of a model handed to it."""
    return torch.opaque_result([*args, *kwargs.values()], node)


MEANINGS: dict[str, Call] = {
    # Regions.
    "torch.autocast": regions.autocast_region,
    "torch.amp.autocast": regions.autocast_region,
    "torch.amp.autocast_mode.autocast": regions.autocast_region,
    "torch.cuda.amp.autocast": regions.autocast_region,
    "torch.cuda.amp.autocast_mode.autocast": regions.autocast_region,
    "torch.cpu.amp.autocast": regions.autocast_region,
    **dict.fromkeys(regions.NO_GRAD, regions.no_grad),
    "torch.enable_grad": regions.enable_grad,
    "torch.autograd.enable_grad": regions.enable_grad,
    "torch.set_grad_enabled": regions.set_grad_enabled,
    "contextlib.nullcontext": regions.null,
    "contextlib.suppress": regions.null,
    "contextlib.ExitStack": regions.exit_stack,
    "torch.profiler.record_function": regions.null,
    "torch.autograd.profiler.record_function": regions.null,
    "torch.device": regions.device,
    "torch.cuda.device": regions.null,
    # Loss scaling and optimizers.
    "torch.amp.GradScaler": torch_calls.scaler,
    "torch.amp.grad_scaler.GradScaler": torch_calls.scaler,
    "torch.cuda.amp.GradScaler": torch_calls.scaler,
    "torch.cuda.amp.grad_scaler.GradScaler": torch_calls.scaler,
    "torch.cpu.amp.GradScaler": torch_calls.scaler,
    "torch.GradScaler": torch_calls.scaler,
    "torch.distributed.fsdp.sharded_grad_scaler.ShardedGradScaler": torch_calls.scaler,
    "*.clip_grad_norm_": torch_calls.clip,
    "*.clip_grad_value_": torch_calls.clip,
    "*.clip_grads_with_norm_": torch_calls.clip,
    "torch.optim.*": torch_calls.optimizer,
    "torch.optim.swa_utils.AveragedModel": torch_calls.averaged_model,
    # Models, tensors and gradients.
    "torch.*.DistributedDataParallel": torch_calls.same_model,
    "torch.*.DataParallel": torch_calls.same_model,
    "torch.*.FullyShardedDataParallel": sharding.shard,
    "torch.*.FullyShardedDataParallelWrapper": torch_calls.same_model,
    "torch.*.fully_shard": sharding.shard,
    "torch.*.checkpoint_wrapper": torch_calls.same_model,
    "torch.*.convert_sync_batchnorm": torch_calls.same_model,
    "torch.*.compile": torch_calls.same_model,
    "torch.*.script": torch_calls.same_model,
    "torch.*.MixedPrecision": sharding.mixed_precision,
    "torch.*.MixedPrecisionPolicy": sharding.mixed_precision,
    "torch.distributed.*": torch_calls.collective,
    "torch.nn.*": torch_calls.nn,
    "torch.nn.init.*": torch_calls.first,
    "torch.nn.functional.*": torch_calls.functional,
    "torch.linalg.*": torch_calls.functional,
    "torch.special.*": torch_calls.functional,
    "torch.functional.*": torch_calls.functional,
    "torch.autograd.grad": torch_calls.autograd_grad,
    "torch.autograd.backward": torch_calls.backward_of,
    "torch.utils.checkpoint.checkpoint": torch_calls.checkpoint,
    "torch.set_default_dtype": torch_calls.set_default_dtype,
    "torch.finfo": torch_calls.finfo,
    "torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp": flags.reduce_in_float16,
    "torch.save": torch_calls.save,
    "torch.*": torch_calls.other,
    # Frameworks.
    "deepspeed.initialize": frameworks.deepspeed,
    "lightning.Trainer": frameworks.trainer,
    "lightning.pytorch.Trainer": frameworks.trainer,
    "pytorch_lightning.Trainer": frameworks.trainer,
    "lightning.fabric.Fabric": frameworks.loop_runner,
    "lightning.Fabric": frameworks.loop_runner,
    "lightning_fabric.Fabric": frameworks.loop_runner,
    "accelerate.Accelerator": frameworks.loop_runner,
    "transformers.Trainer": frameworks.trainer,
    "transformers.Seq2SeqTrainer": frameworks.trainer,
    **dict.fromkeys((f"trl.{name}Trainer" for name in frameworks.TRL), frameworks.trl_trainer),
    "transformers.TrainingArguments": frameworks.training_arguments,
    "transformers.Seq2SeqTrainingArguments": frameworks.training_arguments,
    **dict.fromkeys((f"trl.{name}Config" for name in frameworks.TRL), frameworks.training_arguments),
    "*.from_pretrained": frameworks.from_pretrained,
    "transformers.BitsAndBytesConfig": quantized.config,
    "peft.prepare_model_for_kbit_training": quantized.prepare,
    "peft.get_peft_model": quantized.adapters,
    "bitsandbytes.optim.*": torch_calls.optimizer,
    "lion_pytorch.Lion": torch_calls.optimizer,
    "torch.*.from_pretrained": torch_calls.other,
    # The standard library, and libraries that leave dtypes alone.
    "copy.deepcopy": torch_calls.deepcopy,
    "copy.copy": torch_calls.deepcopy,
    "functools.partial": standard.partial,
    "collections.defaultdict": standard.default_dict,
    "functools.wraps": harmless,
    "types.SimpleNamespace": standard.namespace,
    "argparse.Namespace": standard.namespace,
    "argparse.ArgumentParser": standard.parser,
    "tyro.cli": standard.built,
    "math.*": standard.arithmetic,
    "builtins.isinstance": standard.isinstance_,
    "builtins.zip": standard.zip_,
    "builtins.enumerate": standard.enumerate_,
    "builtins.range": standard.range_,
    "builtins.list": standard.listed,
    "builtins.sorted": standard.listed,
    "builtins.tuple": standard.tuple_,
    "builtins.reversed": standard.listed,
    "builtins.set": standard.listed,
    "builtins.dict": standard.dict_,
    "builtins.float": standard.number,
    "builtins.int": standard.integer,
    "builtins.round": standard.integer,
    "builtins.len": standard.length,
    "builtins.getattr": standard.getattr_,
    "builtins.setattr": standard.setattr_,
    "builtins.sum": standard.sum_,
    "builtins.max": standard.extreme,
    "builtins.min": standard.extreme,
    "builtins.abs": standard.same,
    "builtins.iter": standard.same,
    "builtins.next": standard.next_,
    "builtins.filter": standard.filter_,
    "builtins.map": standard.map_,
    "builtins.print": standard.nothing,
    "builtins.str": standard.string,
    "builtins.bool": standard.bool_,
    "builtins.*": standard.other,
    "os.*": harmless,
    "copy.*": harmless,
    "wandb.*": harmless,
    "logging.*": harmless,
    "time.*": harmless,
    "sys.*": harmless,
    "json.*": harmless,
    "random.*": harmless,
    "numpy.*": harmless,
}
"""A `*` in the middle stands for any packages, one at the end for everything inside; the narrowest key counts."""


@cache
def meaning(name: str) -> Call:
    """The row of the table for a dotted name."""
    front, _, last = name.rpartition(".")
    keys = [name, f"{name.partition('.')[0]}.*.{last}", f"*.{last}"]
    while front:
        keys.append(f"{front}.*")
        front = front.rpartition(".")[0]
    return next((MEANINGS[key] for key in keys if key in MEANINGS), unfamiliar)


def call_reference(torch: Torch, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """A call of an imported function or class."""
    return meaning(name)(torch, name, args, kwargs, node)
