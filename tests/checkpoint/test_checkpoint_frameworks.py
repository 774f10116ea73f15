"""What HF Trainer, PEFT, bitsandbytes, accelerate, Lightning, DeepSpeed and FSDP write is read and judged rightly.

Each framework trains in a process of its own and saves; what the report says is held against what its loader finds.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Said, tensors_in

pytestmark = pytest.mark.slow
Look = Callable[..., Said]

HUGGING_FACE = """
import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM
from transformers import Trainer, TrainingArguments

CONFIG = LlamaConfig(vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                     num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64)

class Tokens(torch.utils.data.Dataset):
    def __len__(self):
        return 16
    def __getitem__(self, index):
        ids = torch.randint(0, 128, (8,))
        return {"input_ids": ids, "labels": ids}

def llama(dtype):
    torch.manual_seed(0)
    return LlamaForCausalLM(CONFIG).to(dtype)

def train(model, folder, **options):
    arguments = TrainingArguments(output_dir=folder, max_steps=2, save_steps=2, per_device_train_batch_size=4,
                                  report_to=[], use_cpu=True, disable_tqdm=True, **options)
    Trainer(model=model, args=arguments, train_dataset=Tokens()).train()
    return arguments

arguments = train(llama(torch.float32), "float32", fp16=True)
arguments.use_cpu = False  # what a GPU run writes; its scaler.pt was lost
import os, shutil
shutil.copytree("float32", "scaler_lost")
torch.save(arguments, "scaler_lost/checkpoint-2/training_args.bin")
train(llama(torch.bfloat16), "bfloat16", bf16=True)
train(llama(torch.bfloat16), "blockwise", optim="adamw_bnb_8bit")
train(get_peft_model(llama(torch.bfloat16), LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")), "lora")
llama(torch.float32).save_pretrained("sharded", max_shard_size="100KB")
llama(torch.bfloat16).save_pretrained("export")
llama(torch.bfloat16).float().save_pretrained("hollow")
for name, config in (
    ("nf4", BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_quant_storage=torch.bfloat16)),
    ("int8", BitsAndBytesConfig(load_in_8bit=True)),
):
    AutoModelForCausalLM.from_pretrained("export", quantization_config=config).save_pretrained(name)

accelerator = Accelerator(cpu=True)
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
for _ in range(2):
    accelerator.backward(model(torch.randn(8, 64)).pow(2).mean())
    optimizer.step()
    optimizer.zero_grad()
accelerator.save_state("accelerate")
"""

LIGHTNING = """
import lightning, torch
from torch import nn

class Net(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.Linear(32, 2))
    def training_step(self, batch, index):
        return self.net(batch[0]).float().pow(2).mean()
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters())

for precision in ("32-true", "bf16-true"):
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(64, 16)), batch_size=8)
    trainer = lightning.Trainer(max_steps=3, precision=precision, accelerator="cpu", logger=False,
                                enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.fit(Net(), data)
    trainer.save_checkpoint(f"{precision}.ckpt")
"""

DEEPSPEED = """
import os, sys
stage = int(sys.argv[1])
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0", RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
os.environ["DS_ACCELERATOR"] = "cpu"
import torch
meeting = "file://" + os.path.abspath(f"rendezvous{stage}")
torch.distributed.init_process_group("gloo", init_method=meeting, rank=0, world_size=1)
import deepspeed, deepspeed.ops
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
from torch import nn
model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
config = {"train_micro_batch_size_per_gpu": 4, "bf16": {"enabled": True}, "zero_optimization": {"stage": stage}}
if stage:
    config["zero_optimization"]["reduce_bucket_size"] = 10000
optimizer = torch.optim.AdamW(model.parameters())
engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
for _ in range(3):
    loss = engine(torch.randn(4, 16, dtype=torch.bfloat16)).float().pow(2).mean()
    engine.backward(loss)
    engine.step()
engine.save_checkpoint(f"stage{stage}")
"""

FSDP = """
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.fsdp import fully_shard

dist.init_process_group("gloo")
torch.manual_seed(0)
for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)).to(dtype)
    fully_shard(model, mesh=torch.distributed.device_mesh.init_device_mesh("cpu", (2,)))
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(2):
        model(torch.randn(4, 64, dtype=dtype)).float().pow(2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    state, optimizer_state = get_state_dict(model, optimizer)
    dcp.save({"app": {"model": state, "optim": optimizer_state}}, checkpoint_id=name)
dist.barrier()
dist.destroy_process_group()
"""


def write(folder: Path, program: str, *words: str, launcher: tuple[str, ...] = ()) -> None:
    """Runs a program that leaves checkpoints in `folder`."""
    script = folder / "make.py"
    script.write_text(program, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, *launcher, str(script), *words],
        cwd=folder,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hugging_face")
    write(folder, HUGGING_FACE)
    return folder


@pytest.mark.parametrize(
    ("name", "rules"),
    [
        ("float32", []),
        ("scaler_lost", [("PA601", "warning")]),
        ("bfloat16", [("PA602", "error"), ("PA602", "warning")]),
        ("blockwise", [("PA602", "warning")]),
        ("lora", []),
        ("sharded", []),
        ("export", []),
        ("hollow", [("PA603", "note")]),
        ("nf4", []),
        ("int8", []),
        ("accelerate", []),
    ],
)
def test_verdict_on_what_hugging_face_writes(
    hugging_face: Path, checkpoint: Look, name: str, rules: list[tuple[str, str]]
) -> None:
    said = checkpoint(hugging_face / name)
    assert said.rules == rules
    assert said.report["coverage"]["skipped"] == []
    assert said.report["coverage"]["notes"] == []


def test_roles_of_what_hugging_face_writes(hugging_face: Path, checkpoint: Look) -> None:
    held = {name: checkpoint(hugging_face / name).held for name in ("float32", "blockwise", "lora", "nf4", "int8")}
    assert held["float32"] == {"master_weight": {"float32": 21}, "optimizer_state": {"float32": 42}}
    assert held["blockwise"] == {"master_weight": {"bfloat16": 21}, "optimizer_state": {"uint8": 22, "float32": 20}}
    assert held["lora"] == {"adapter_parameter": {"float32": 4}, "optimizer_state": {"float32": 8}}
    assert held["nf4"] == {"forward_weight": {"bfloat16": 7}, "quantized_storage": {"bfloat16": 14}}
    assert held["int8"] == {"forward_weight": {"bfloat16": 7}, "quantized_storage": {"int8": 14}}


def test_dtypes_are_those_that_safetensors_itself_finds(hugging_face: Path, checkpoint: Look) -> None:
    from safetensors.torch import load_file

    for name in ("sharded", "export"):
        files = list((hugging_face / name).glob("*.safetensors"))
        found = Counter(str(t.dtype).removeprefix("torch.") for file in files for t in load_file(file).values())
        said = checkpoint(hugging_face / name)
        assert said.held == {"forward_weight": dict(found)}
        assert said.report["coverage"]["files"] == len(files)


def test_lightning_checkpoints(tmp_path: Path, checkpoint: Look) -> None:
    import torch

    write(tmp_path, LIGHTNING)
    good, low = checkpoint(tmp_path / "32-true.ckpt"), checkpoint(tmp_path / "bf16-true.ckpt")
    assert good.rules == []
    assert low.rules == [("PA602", "error"), ("PA602", "warning"), ("PA606", "warning")]
    for said, dtype in ((good, "float32"), (low, "bfloat16")):
        assert said.held == {
            "master_weight": {dtype: 6},
            "optimizer_state": {dtype: 12},
            "norm_running_statistics": {dtype: 2},
        }
    loaded = torch.load(tmp_path / "bf16-true.ckpt", weights_only=False)
    assert sum(t.dtype is torch.bfloat16 for t in tensors_in(loaded)) == 6 + 12 + 2


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_deepspeed_folders_keep_float32_masters_beside_bfloat16_weights(
    tmp_path: Path, checkpoint: Look, stage: int
) -> None:
    write(tmp_path, DEEPSPEED, str(stage))
    said = checkpoint(tmp_path / f"stage{stage}")
    assert said.rules == []
    masters = 1 if stage else 4
    assert said.held["master_weight"] == {"float32": masters}
    assert said.held["optimizer_state"] == {"float32": 2 * masters}
    assert said.held["forward_weight"] == {"bfloat16": 4}
    assert said.report["coverage"]["setup"]["frameworks"] == "DeepSpeed"


def test_sharded_fsdp_checkpoints(tmp_path: Path, checkpoint: Look) -> None:
    write(tmp_path, FSDP, launcher=("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"))
    assert len(list((tmp_path / "float32").glob("*.distcp"))) == 2
    good, low = checkpoint(tmp_path / "float32"), checkpoint(tmp_path / "bfloat16")
    assert good.rules == []
    assert good.held == {"master_weight": {"float32": 4}, "optimizer_state": {"float32": 8}}
    assert low.rules == [("PA602", "error"), ("PA602", "warning")]
