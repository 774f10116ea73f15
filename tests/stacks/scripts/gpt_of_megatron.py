"""A tiny GPT of Megatron-Core on a CPU: four micro-batches per step, their gradients summed in its own buffers."""

# ruff: noqa: E402

import contextlib
import os
import socket
import sys

import torch

# Megatron-Core takes a GPU for granted; the steps themselves run anywhere.
torch.cuda.current_device = lambda: "cpu"
torch.cuda.synchronize = lambda *args, **kwargs: None
torch.Tensor.cuda = lambda self, *args, **kwargs: self
own_type = torch.Tensor.type
torch.Tensor.type = lambda self, *args, **kwargs: (
    own_type(self, *args, **kwargs) if args or kwargs else own_type(self).replace("torch.", "torch.cuda.")
)


def on_cpu(make):
    return lambda *args, **kwargs: make(
        *args, **{k: "cpu" if k == "device" and str(v).startswith("cuda") else v for k, v in kwargs.items()}
    )


for name in ("tensor", "zeros", "empty", "full", "ones", "zeros_like", "arange"):
    setattr(torch, name, on_cpu(getattr(torch, name)))

import megatron.core.tensor_parallel as tensor_parallel
import megatron.core.tensor_parallel.random as random


class Tracker:
    def fork(self, *args, **kwargs):
        return contextlib.nullcontext()

    def is_initialized(self):
        return True


random.get_cuda_rng_tracker = tensor_parallel.get_cuda_rng_tracker = lambda *args, **kwargs: Tracker()

from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.transformer.module import Float16Module
from megatron.core.transformer.transformer_config import TransformerConfig

in_float32, sharded = "--in-float32" in sys.argv, "--sharded" in sys.argv
float16, fixed = "--float16" in sys.argv, "--fixed-scale" in sys.argv
low = torch.float16 if float16 else torch.bfloat16
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free.getsockname()[1]), RANK="0", WORLD_SIZE="1")
torch.distributed.init_process_group("gloo")
parallel_state.initialize_model_parallel(1, 1)
torch.manual_seed(0)
config = TransformerConfig(
    num_layers=1,
    hidden_size=32,
    num_attention_heads=4,
    use_cpu_initialization=True,
    bf16=not float16,
    fp16=float16,
    params_dtype=low,
    pipeline_dtype=low,
    hidden_dropout=0.0,
    attention_dropout=0.0,
    bias_dropout_fusion=False,
)
model = GPTModel(config, get_gpt_layer_local_spec(), vocab_size=128, max_sequence_length=64)
reduction = DistributedDataParallelConfig(grad_reduce_in_fp32=in_float32, use_distributed_optimizer=sharded)
model = DistributedDataParallel(config, reduction, Float16Module(config, model))
optimizer = get_megatron_optimizer(
    OptimizerConfig(
        optimizer="adam",
        lr=1e-3,
        bf16=not float16,
        fp16=float16,
        params_dtype=low,
        use_distributed_optimizer=sharded,
        initial_loss_scale=256.0,
        loss_scale=256.0 if fixed else None,
    ),
    [model],
)
positions, mask = torch.arange(16).expand(2, -1), torch.triu(torch.ones(1, 1, 16, 16, dtype=torch.bool), 1)
for step in range(4):
    for _ in range(4):
        tokens = torch.randint(0, 128, (2, 17))
        loss = model(tokens[:, :-1], positions, mask, labels=tokens[:, 1:]).float().mean()
        optimizer.scale_loss(loss).backward()
    model.finish_grad_sync()
    optimizer.step()
    optimizer.zero_grad()
    model.zero_grad_buffer()
    print(step, loss.item())
torch.distributed.destroy_process_group()
