"""Locks of programs hold from run to run; one dtype lowered in them breaks the lock, which names what it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from mutants import engine, operators

from precaudit.contracts import lockfile
from precaudit.contracts.drift import compare

PROGRAMS = engine.programs()
FRAMEWORKS = ("accelerate_loop", "fabric_loop", "lightning_module", "peft_lora", "schedule_free", "trainer_tiny_gpt")
OTHERS = (
    "actor_critic_gae", "amp_accumulation", "char_rnn_tbptt", "char_transformer", "classifier_amp", "config_project",
    "contrastive", "coupling_flow", "ddp_gloo", "dice_and_focal", "diffusion_ema", "distillation", "dqn_replay",
    "flow_matching", "gan", "graph_network", "handwritten_adam", "lora_on_bfloat16", "masters_by_hand",
    "mean_teacher", "moe_lm", "scaler_by_hand", "self_distillation_centre", "vit_mixup",
)  # fmt: skip
LOWERED = {
    "master weight was float32, is bfloat16": ("config_project", "model-and-inputs-in-bfloat16"),
    "optimizer state was float32, is bfloat16": ("handwritten_adam", "moment-built-low"),
    "SGD.momentum_buffer was float32, is bfloat16": ("margin_softmax", "momentum-rounded-after-each-step"),
    "loss was float32, is float16": ("vae_class_trainer", "loss-half"),
    "softmax was float32, is bfloat16": ("moe_lm", "probabilities-low"),
    "norm computation was float32, is bfloat16": ("char_transformer", "norm-without-upcast"),
    "norm running statistics was float32, is bfloat16": ("mean_teacher", "batch-norm-low"),
    "accumulator was float32, is bfloat16": ("diffusion_ema", "shadow-weights-low"),
    "gradient norm was float32, is float16": ("accelerate_loop", "clipping-by-a-low-norm"),
    "rotary.inv_freq: buffer was float32, is bfloat16": ("char_transformer", "frequencies-low"),
    "matmul compute was bfloat16 and float32, is bfloat16": ("moe_lm", "disabled-region-without-upcast"),
}
"""The sentence of the drift -> the program and the operator that brings it about."""


def locks(files: Mapping[str, Mapping[str, str]], seed: int) -> dict[str, Any]:
    """Name of the program -> what `locks.py` made of it, with this hash seed."""
    made = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("locks.py"))],
        env={**os.environ, "PYTHONHASHSEED": str(seed)},
        input=json.dumps(files),
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(json.loads(line) for line in made.stdout.splitlines())


def broken(tmp_path: Path, before: str, after: str) -> list[str]:
    held = []
    for number, text in enumerate((before, after)):
        path = tmp_path / f"{number}.lock"
        path.write_text(text)
        held.append(lockfile.read(path))
    return [str(change) for change in compare(*held).changes]


@pytest.mark.slow
def test_locks_hold_over_runs_and_hash_seeds_and_break_at_one_lowered_dtype(tmp_path: Path) -> None:
    names = [name for name in (*FRAMEWORKS, *OTHERS) if PROGRAMS[name].runnable]
    assert len(names) == 30 or "accelerate_loop" not in names, "without the frameworks there are those of torch alone"
    known = operators.load()
    mutants = {
        says: engine.mutants(PROGRAMS[program], known[operator])[0].files
        for says, (program, operator) in LOWERED.items()
        if PROGRAMS[program].runnable
    }
    parents = {name: PROGRAMS[name].files for name in {*names, *(LOWERED[says][0] for says in mutants)}}
    first = locks(parents, seed=1)
    second = locks({**{name: PROGRAMS[name].files for name in names}, **mutants}, seed=2)
    for name in names:
        assert not first[name]["error"], name
        assert "[roles]" in first[name]["text"], name
        assert first[name]["text"] == second[name]["text"], name
    for says in mutants:
        assert not second[says]["error"], says
        changes = broken(tmp_path, first[LOWERED[says][0]]["text"], second[says]["text"])
        assert any(says in change for change in changes), (says, changes)
