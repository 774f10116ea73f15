"""Precision that is decided outside the script: in DeepSpeed's JSON, accelerate's YAML and launcher lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from precaudit import rulebook
from precaudit.judge import judge
from precaudit.model.vocabulary import fact_from_json
from precaudit.model.wire import Severity
from precaudit.static.analyze import analyze
from precaudit.static.files.cache import Cache
from precaudit.static.files.discovery import Found
from precaudit.static.files.run import examine_all
from precaudit.static.source import load

ARGUMENTS = """
import os
from pathlib import Path

from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

HERE = Path(__file__).resolve().parent
model = AutoModelForCausalLM.from_pretrained("gpt2")
args = TrainingArguments("out", bf16=True, gradient_accumulation_steps=8, deepspeed={path})
Trainer(model=model, args=args, train_dataset=ds).train()
"""
PARSER = """
import torch
from transformers import AutoModelForCausalLM, HfArgumentParser, Trainer, TrainingArguments

(args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()
model = AutoModelForCausalLM.from_pretrained("gpt2", dtype=torch.float32)
Trainer(model=model, args=args, train_dataset=ds).train()
torch.bfloat16
"""
ACCELERATOR = """
from accelerate import Accelerator

accelerator = Accelerator(mixed_precision="bf16")
with accelerator.autocast():
    pass
"""
BARE = PARSER.replace("import torch\n", "").replace(", dtype=torch.float32", "").replace("torch.bfloat16\n", "")
"""A script that has no word of precision."""
FP16 = {"fp16": {"enabled": True}, "zero_optimization": {"stage": 2}}
BF16 = {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}, "zero_optimization": {"stage": 2}}
AUTO = {"bf16": {"enabled": "auto"}, "fp16": {"enabled": "auto"}, "gradient_accumulation_steps": "auto"}


def found(folder: Path, script: str, **files: object) -> set[str]:
    """The rules that speak loudly of a script among these files; `ds_json` is ds.json."""
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name.replace("_", ".")).write_text(text)
    (folder / "train.py").write_text(script)
    facts, _ = analyze(load(folder / "train.py", "train.py"))
    return {f.rule for f in judge(facts, rulebook.load(), "check") if f.severity is not Severity.NOTE}


def checked(folder: Path) -> set[str]:
    """The same of `train.py` as `check` looks at it, which leaves out what no finding can start in."""
    item = Found(str(folder / "train.py"), "train.py")
    facts = [fact_from_json(raw) for raw in examine_all([item], Cache(None), jobs=1)[0][1].get("facts", ())]
    return {f.rule for f in judge(facts, rulebook.load(), "check") if f.severity is not Severity.NOTE}


@pytest.mark.parametrize(
    "path",
    [
        '"ds.json"',
        "str(HERE / 'ds.json')",
        "Path(__file__).with_name('ds.json')",
        "os.path.join(os.path.dirname(os.path.abspath(__file__)), 'ds.json')",
        "os.fspath(HERE.joinpath('ds.json'))",
    ],
)
def test_a_deepspeed_file_is_found_however_its_path_is_written(tmp_path: Path, path: str) -> None:
    assert found(tmp_path, ARGUMENTS.format(path=path), ds_json=FP16) == {"PA805"}
    assert found(tmp_path, ARGUMENTS.format(path=path), ds_json=BF16) == set()


def test_what_the_file_leaves_to_the_script_is_the_scripts(tmp_path: Path) -> None:
    script = ARGUMENTS.format(path="'ds.json'")
    assert found(tmp_path, script, ds_json=AUTO) == {"PA803"}
    assert found(tmp_path, script.replace("steps=8", "steps=1"), ds_json=AUTO) == set()
    assert found(tmp_path, script, ds_json={**AUTO, "data_types": {"grad_accum_dtype": "fp32"}}) == set()


def test_a_launcher_line_names_a_deepspeed_file_against_its_own_flags(tmp_path: Path) -> None:
    line = "torchrun --nproc-per-node 8 train.py \\\n  --output_dir out --bf16 True \\\n  --deepspeed ds.json\n"
    assert found(tmp_path, PARSER, run_sh=line, ds_json=FP16) == {"PA805"}
    assert found(tmp_path, PARSER, run_sh=line, ds_json=BF16) == set()
    assert found(tmp_path, PARSER, run_sh=f"# {line}", ds_json=FP16) == set()
    assert found(tmp_path, PARSER, run_sh=line.replace("train.py", "other.py"), ds_json=FP16) == set()
    assert found(tmp_path, PARSER, run_sh=line.replace("--bf16 True", "--fp16"), ds_json=FP16) == set()


def test_a_launcher_line_names_an_accelerate_file_against_the_script(tmp_path: Path) -> None:
    line = "accelerate launch --config_file acc.yaml train.py --lr 1e-4\n"
    assert found(tmp_path, ACCELERATOR, run_sh=line, acc_yaml="mixed_precision: fp16\n") == {"PA805"}
    assert found(tmp_path, ACCELERATOR, run_sh=line, acc_yaml="mixed_precision: bf16\n") == set()
    assert found(tmp_path, ACCELERATOR, run_sh=line, acc_yaml="mixed_precision: 'no'\n") == set()
    inner = "mixed_precision: bf16\ndeepspeed_config:\n  deepspeed_config_file: ds.json\n"
    assert found(tmp_path, ACCELERATOR, run_sh=line, acc_yaml=inner, ds_json=FP16) == {"PA805"}
    assert found(tmp_path, ACCELERATOR, run_sh=line, acc_yaml=inner, ds_json=BF16) == set()


def test_files_that_cannot_be_read_say_nothing(tmp_path: Path) -> None:
    line = "accelerate launch --config_file acc.yaml train.py\n"
    assert found(tmp_path, ACCELERATOR, run_sh=line, acc_yaml="a: [") == set()
    assert found(tmp_path, ARGUMENTS.format(path="'ds.json'"), ds_json="{") == set()


def test_a_launcher_line_may_be_all_that_says_a_precision(tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text(json.dumps(FP16))
    (tmp_path / "run.sh").write_text("deepspeed train.py --output_dir out --bf16 True --deepspeed ds.json\n")
    (tmp_path / "train.py").write_text(BARE)
    assert checked(tmp_path) == {"PA805"}
    (tmp_path / "run.sh").write_text("deepspeed train.py --output_dir out --fp16 True --deepspeed ds.json\n")
    assert checked(tmp_path) == set()
