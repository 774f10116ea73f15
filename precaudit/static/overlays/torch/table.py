"""One table: what calling torch's own functions and classes means, and the standard library's regions."""

from __future__ import annotations

from collections.abc import Mapping

from precaudit.static.overlays import Call, Method
from precaudit.static.overlays.torch import calls, reduction, regions, scaling, sharding

CALLS: Mapping[str, Call] = {
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
    "torch.amp.GradScaler": scaling.scaler,
    "torch.amp.grad_scaler.GradScaler": scaling.scaler,
    "torch.cuda.amp.GradScaler": scaling.scaler,
    "torch.cuda.amp.grad_scaler.GradScaler": scaling.scaler,
    "torch.cpu.amp.GradScaler": scaling.scaler,
    "torch.GradScaler": scaling.scaler,
    "torch.distributed.fsdp.sharded_grad_scaler.ShardedGradScaler": scaling.scaler,
    "*.clip_grad_norm_": calls.clip,
    "*.clip_grad_value_": calls.clip,
    "*.clip_grads_with_norm_": calls.clip,
    "torch.optim.*": calls.optimizer,
    "torch.optim.swa_utils.AveragedModel": calls.averaged_model,
    # Models, tensors and gradients.
    "torch.*.DistributedDataParallel": calls.ddp,
    "torch.*.DataParallel": calls.same_model,
    "torch.*.FullyShardedDataParallel": sharding.shard,
    "torch.*.FullyShardedDataParallelWrapper": calls.same_model,
    "torch.*.fully_shard": sharding.shard,
    "torch.*.checkpoint_wrapper": calls.same_model,
    "torch.*.convert_sync_batchnorm": calls.same_model,
    "torch.*.compile": calls.same_model,
    "torch.*.script": calls.same_model,
    "torch.*.MixedPrecision": sharding.mixed_precision,
    "torch.*.MixedPrecisionPolicy": sharding.mixed_precision,
    "torch.*.fp16_compress_wrapper": reduction.wrapped_hook,
    "torch.*.bf16_compress_wrapper": reduction.wrapped_hook,
    "torch.distributed.*": calls.collective,
    "torch.nn.*": calls.nn,
    "torch.nn.init.*": calls.first,
    "torch.nn.functional.*": calls.functional,
    "torch.linalg.*": calls.functional,
    "torch.special.*": calls.functional,
    "torch.functional.*": calls.functional,
    "torch.autograd.grad": calls.autograd_grad,
    "torch.autograd.backward": calls.backward_of,
    "torch.utils.checkpoint.checkpoint": calls.checkpoint,
    "torch.set_default_dtype": calls.set_default_dtype,
    "torch.finfo": calls.finfo,
    "torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp": calls.backend_flag,
    **dict.fromkeys(("torch.save", "pickle.dump", "cloudpickle.dump", "joblib.dump"), calls.save),
    "torch.*": calls.other,
    "torch.*.from_pretrained": calls.other,
    "copy.deepcopy": calls.deepcopy,
    "copy.copy": calls.deepcopy,
}

METHODS: Mapping[str, Method] = {
    reduction.BUCKET: reduction.bucket_method,
    "contextlib.ExitStack": regions.stack_method,
}
