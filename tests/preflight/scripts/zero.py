"""DeepSpeed: `zero.py bf16|fp16 STAGE`; `wrong` keeps no master weights; their moments are bfloat16 too."""

import sys

import deepspeed
import torch
from torch import nn

PRECISION, STAGE = sys.argv[1], int(sys.argv[2])


def main() -> None:
    torch.manual_seed(0)
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "zero_optimization": {"stage": STAGE},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}},
        PRECISION: {"enabled": True},
        "gradient_clipping": 1.0,
    }
    if PRECISION == "fp16":
        config["fp16"]["initial_scale_power"] = 8
        config["communication_data_type"] = "fp32"
    if "wrong" in sys.argv:
        config["bf16"]["bf16_master_weights_and_grads"] = True
        config["bf16"]["bf16_optimizer_states"] = True
    model = nn.Sequential(nn.Linear(16, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 4))
    engine, _, _, _ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=config)
    assert engine.device.type == "cuda"
    dtype = next(model.parameters()).dtype
    for _ in range(5):
        x, y = torch.randn(4, 16, device=engine.device, dtype=dtype), torch.randint(0, 4, (4,), device=engine.device)
        loss = nn.functional.cross_entropy(engine(x).float(), y)
        engine.backward(loss)
        engine.step()


main()
