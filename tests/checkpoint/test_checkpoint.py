"""`precaudit checkpoint`: what it says of files that torch itself wrote, against what torch.load finds in them."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from conftest import Said, Trained, lower, save_safetensors, tensors_in
from torch import nn

Look = Callable[..., Said]
Make = Callable[..., Trained]
ROOT = Path(__file__).resolve().parents[2]


def whole(made: Trained, **more: Any) -> dict[str, Any]:
    return {"model": made.model.state_dict(), "optimizer": made.optimizer.state_dict(), **more}


def hollow(model: nn.Module) -> dict[str, torch.Tensor]:
    return lower(lower(dict(model.state_dict())), torch.float32)


# ---- roles and dtypes


def test_a_training_checkpoint_in_float32_is_clean_and_every_role_is_counted(
    tmp_path: Path, checkpoint: Look, trained: Make
) -> None:
    made, scaler = trained(), torch.amp.GradScaler("cpu")
    torch.save(whole(made, scaler=scaler.state_dict(), step=3), tmp_path / "last.pt")
    said = checkpoint(tmp_path / "last.pt")
    assert (said.code, said.rules, said.report["status"]) == (0, [], "clean")
    assert said.held == {
        "master_weight": {"float32": 6},
        "optimizer_state": {"float32": 12},
        "loss_scale": {"float64": 1},
        "norm_running_statistics": {"float32": 2},
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tensors_and_dtypes_are_those_that_torch_load_finds(
    tmp_path: Path, checkpoint: Look, trained: Make, dtype: torch.dtype
) -> None:
    made = trained(dtype)
    torch.save(whole(made), tmp_path / "last.pt")
    loaded = torch.load(tmp_path / "last.pt", weights_only=True)
    name = str(dtype).removeprefix("torch.")
    said = checkpoint(tmp_path / "last.pt")
    floating = Counter(
        str(t.dtype).removeprefix("torch.") for t in tensors_in(loaded) if t.dim() and t.is_floating_point()
    )
    held: Counter[str] = Counter()
    for dtypes in said.held.values():
        held.update(dtypes)
    assert held == floating == {name: 20}
    assert said.report["coverage"]["setup"]["holding"].startswith(f"{len(tensors_in(loaded))} tensors, ")


def test_bytes_of_tied_weights_are_counted_once(tmp_path: Path, checkpoint: Look) -> None:
    embedding, head = nn.Embedding(64, 32), nn.Linear(32, 64, bias=False)
    head.weight = embedding.weight
    torch.save(nn.ModuleDict({"embed": embedding, "head": head}).state_dict(), tmp_path / "tied.pt")
    said = checkpoint(tmp_path / "tied.pt")
    assert [(row["tensors"], row["bytes"]) for row in said.report["roles"] if row["dtype"]] == [(2, 64 * 32 * 4)]


def test_a_module_saved_whole_is_read_without_its_class(tmp_path: Path, checkpoint: Look, trained: Make) -> None:
    torch.save(trained().model, tmp_path / "whole.pt")
    said = checkpoint(tmp_path / "whole.pt")
    assert said.held == {"forward_weight": {"float32": 6}, "norm_running_statistics": {"float32": 2}}


@pytest.mark.parametrize("flatten", [False, True], ids=["as it is", "flattened"])
def test_a_folder_of_torch_distributed_checkpoint_is_read_without_torch(
    tmp_path: Path, checkpoint: Look, trained: Make, flatten: bool
) -> None:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    made = trained()
    model, optimizer = get_state_dict(
        made.model, made.optimizer, options=StateDictOptions(flatten_optimizer_state_dict=flatten)
    )
    scaler = torch.amp.GradScaler("cpu").state_dict()
    dcp.save({"model": model, "optim": optimizer, "scaler": scaler}, checkpoint_id=tmp_path / "dcp", no_dist=True)
    said = checkpoint(tmp_path / "dcp")
    assert said.code == 0
    assert said.held["master_weight"] == {"float32": 6}
    assert said.held["optimizer_state"] == {"float32": 12}
    assert said.held["loss_scale"] == {"float64": 1}


def test_low_optimizer_state_and_hollow_weights_are_found_in_a_distributed_checkpoint(
    tmp_path: Path, checkpoint: Look, trained: Make
) -> None:
    made = trained()
    state = {"model": hollow(made.model), "optim": lower(made.optimizer.state_dict())}
    dcp.save(state, checkpoint_id=tmp_path / "dcp", no_dist=True)
    said = checkpoint(tmp_path / "dcp")
    assert said.rules == [("PA602", "error"), ("PA603", "warning")]
    assert said.finding("PA602")["path"] == str(tmp_path / "dcp" / ".metadata")


# ---- PA602


def test_optimizer_state_saved_low_is_an_error_that_names_it(tmp_path: Path, checkpoint: Look, trained: Make) -> None:
    made = trained()
    file = tmp_path / "last.pt"
    torch.save({"model": made.model.state_dict(), "optimizer": lower(made.optimizer.state_dict())}, file)
    said = checkpoint(file)
    assert (said.code, said.rules) == (1, [("PA602", "error")])
    finding = said.finding("PA602")
    assert finding["message"] == (
        "optimizer state or master weights are saved or restored in bfloat16: exp_avg, exp_avg_sq of 6 parameters"
    )
    assert (finding["path"], finding["line"], finding["role"], finding["seen_by"]) == (
        str(file),
        None,
        "optimizer_state",
        ["checkpoint"],
    )


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        (torch.optim.SGD, {"momentum": 0.9}),
        (torch.optim.RMSprop, {}),
        (torch.optim.Adagrad, {}),
        (torch.optim.Adadelta, {}),
        (torch.optim.Adamax, {}),
        (torch.optim.NAdam, {}),
        (torch.optim.Adafactor, {}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_state_of_every_optimizer_is_recognised(
    tmp_path: Path, checkpoint: Look, trained: Make, optimizer: Any, options: Any
) -> None:
    torch.save(whole(trained(torch.bfloat16, optimizer, **options)), tmp_path / "last.pt")
    assert ("PA602", "error") in checkpoint(tmp_path / "last.pt").rules
    torch.save(whole(trained(torch.float32, optimizer, **options)), tmp_path / "last.pt")
    assert checkpoint(tmp_path / "last.pt").rules == []


def test_weights_halved_on_the_way_into_the_file_are_an_error(tmp_path: Path, checkpoint: Look, trained: Make) -> None:
    made = trained()
    torch.save({"model": lower(made.model.state_dict()), "optimizer": made.optimizer.state_dict()}, tmp_path / "l.pt")
    said = checkpoint(tmp_path / "l.pt")
    assert said.rules == [("PA602", "error")]
    assert said.finding("PA602")["role"] == "master_weight"


def test_weights_that_were_low_in_training_are_a_warning_beside_their_state(
    tmp_path: Path, checkpoint: Look, trained: Make
) -> None:
    torch.save(whole(trained(torch.bfloat16)), tmp_path / "last.pt")
    said = checkpoint(tmp_path / "last.pt")
    assert [rule for rule in said.rules if rule[0] == "PA602"] == [("PA602", "error"), ("PA602", "warning")]


def test_an_export_for_inference_is_clean_in_any_dtype(tmp_path: Path, checkpoint: Look, trained: Make) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        torch.save(lower(trained().model.state_dict(), dtype), tmp_path / "export.pt")
        save_safetensors(tmp_path / "model.safetensors", lower(dict(trained().model.state_dict()), dtype))
        for name in ("export.pt", "model.safetensors"):
            assert checkpoint(tmp_path / name).rules == []


def test_bfloat16_weights_beside_float32_masters_are_fine(tmp_path: Path, checkpoint: Look, trained: Make) -> None:
    made = trained()
    masters = [parameter.detach().clone() for parameter in made.model.parameters()]
    saved = {
        "model": lower(made.model.state_dict()),
        "optimizer": {**made.optimizer.state_dict(), "fp32_from_fp16_params": [masters]},
    }
    torch.save(saved, tmp_path / "last.pt")
    said = checkpoint(tmp_path / "last.pt")
    assert said.rules == []
    assert said.held["master_weight"] == {"float32": 6}
    assert said.held["forward_weight"] == {"bfloat16": 6}


def test_low_adapters_on_a_frozen_low_base_are_fine_and_their_low_state_is_not(
    tmp_path: Path, checkpoint: Look
) -> None:
    base = {f"base.layers.{n}.weight": torch.randn(32, 32).bfloat16() for n in range(2)}
    lora = {f"base.layers.{n}.lora_A.default.weight": torch.randn(4, 32).bfloat16() for n in range(2)}
    moments = {
        n: {"step": torch.tensor(3.0), "exp_avg": torch.randn(4, 32), "exp_avg_sq": torch.rand(4, 32)} for n in range(2)
    }
    optimizer = {"state": moments, "param_groups": [{"params": [0, 1]}]}
    torch.save({"model": base | lora, "optimizer": optimizer}, tmp_path / "lora.pt")
    said = checkpoint(tmp_path / "lora.pt")
    assert said.rules == []
    assert said.held["adapter_parameter"] == {"bfloat16": 2}
    low = {"state": lower(moments), "param_groups": [{"params": [0, 1]}]}
    torch.save({"model": base | lora, "optimizer": low}, tmp_path / "lora.pt")
    assert checkpoint(tmp_path / "lora.pt").rules == [("PA602", "error")]


def test_blockwise_and_compensated_state_is_allowed(tmp_path: Path, checkpoint: Look) -> None:
    weights = {"weight": torch.randn(64, 64)}
    blocks = {"step": 3, "state1": torch.randint(0, 255, (64, 64), dtype=torch.uint8), "absmax1": torch.rand(16)}
    torch.save(
        {"model": weights, "optimizer": {"state": {0: blocks}, "param_groups": [{"params": [0]}]}}, tmp_path / "8"
    )
    said = checkpoint(tmp_path / "8")
    assert said.rules == []
    assert [r["verdict"] for r in said.report["roles"] if r["role"] == "optimizer_state"] == ["allowed"]
    kahan = {"step": 3, "exp_avg": torch.randn(64, 64), "kahan_comp": torch.randn(64, 64)}
    state = lower({0: kahan})
    torch.save(
        {"model": lower(weights), "optimizer": {"state": state, "param_groups": [{"params": [0]}]}}, tmp_path / "k"
    )
    assert checkpoint(tmp_path / "k").rules == []


def test_quantised_storage_and_positions_are_told_from_weights(tmp_path: Path, checkpoint: Look) -> None:
    save_safetensors(
        tmp_path / "model.safetensors",
        {
            "layers.0.weight": torch.randn(32, 1).bfloat16(),
            "layers.0.weight.absmax": torch.rand(8),
            "layers.0.weight.quant_map": torch.rand(16),
            "layers.0.weight.quant_state.bitsandbytes__nf4": torch.zeros(90, dtype=torch.uint8),
            "layers.1.weight": torch.zeros(32, 32, dtype=torch.int8),
            "layers.1.SCB": torch.rand(32),
            "layers.2.weight": torch.zeros(32, 32).to(torch.float8_e4m3fn),
            "norm.weight": torch.ones(32).bfloat16(),
            "rotary.inv_freq": torch.rand(16).bfloat16(),
            "bn.num_batches_tracked": torch.tensor(3),
        },
    )
    said = checkpoint(tmp_path)
    assert said.rules == []
    assert said.held == {
        "forward_weight": {"bfloat16": 1},
        "quantized_storage": {"bfloat16": 1, "float8_e4m3fn": 1, "int8": 1},
        "positions": {"bfloat16": 1},
    }


def test_averaged_weights_are_accumulators(tmp_path: Path, checkpoint: Look, trained: Make) -> None:
    made = trained()
    torch.save(whole(made, ema=lower(made.model.state_dict(), torch.float32)), tmp_path / "last.pt")
    assert checkpoint(tmp_path / "last.pt").held["accumulator"] == {"float32": 8}


# ---- PA603


def test_hollow_weights_after_training_are_a_warning(tmp_path: Path, checkpoint: Look, trained: Make) -> None:
    made = trained()
    torch.save({"model": hollow(made.model), "optimizer": made.optimizer.state_dict()}, tmp_path / "last.pt")
    said = checkpoint(tmp_path / "last.pt", "--fail-on", "warning")
    assert (said.code, said.rules) == (1, [("PA603", "warning")])
    finding = said.finding("PA603")
    assert finding["evidence"] == {"hollow": 1.0}
    assert finding["message"].endswith(": 2 of 2 weights whose content tells after 3 optimizer steps")


@pytest.mark.parametrize("optimizer", [False, True], ids=["weights alone", "an optimizer that took no step"])
def test_hollow_weights_that_nothing_trained_are_a_note(
    tmp_path: Path, checkpoint: Look, trained: Make, optimizer: bool
) -> None:
    model = hollow(trained().model)
    fresh = torch.optim.AdamW(trained().model.parameters()).state_dict()
    torch.save({"model": model, "optimizer": fresh} if optimizer else model, tmp_path / "release.pt")
    said = checkpoint(tmp_path / "release.pt")
    assert (said.code, said.rules, said.report["status"]) == (0, [("PA603", "note")], "clean")


def test_float32_is_hollow_exactly_where_torch_says_so(tmp_path: Path, checkpoint: Look) -> None:
    torch.manual_seed(0)
    for noise in (0.0, 2.0**-12):
        weight = torch.randn(512, 512).bfloat16().float() * (1 + noise)
        assert bool((weight.view(torch.int32) & 0xFFFF == 0).all()) is (noise == 0.0)
        save_safetensors(tmp_path / "model.safetensors", {"weight": weight})
        assert checkpoint(tmp_path).rules == ([("PA603", "note")] if noise == 0.0 else [])


def test_a_frozen_hollow_base_under_trained_adapters_is_no_warning(tmp_path: Path, checkpoint: Look) -> None:
    base = {"layer.weight": torch.randn(64, 64).bfloat16().float()}
    lora = {"layer.lora_A.weight": torch.randn(8, 64)}
    state = {0: {"step": torch.tensor(5.0), "exp_avg": torch.randn(8, 64), "exp_avg_sq": torch.rand(8, 64)}}
    saved = {"model": base | lora, "optimizer": {"state": state, "param_groups": [{"params": [0]}]}}
    torch.save(saved, tmp_path / "lora.pt")
    assert checkpoint(tmp_path / "lora.pt").rules == []


def test_ones_and_zeros_say_nothing_about_hollowness(tmp_path: Path, checkpoint: Look) -> None:
    save_safetensors(tmp_path / "model.safetensors", {"norm.weight": torch.ones(4096), "bias": torch.zeros(4096)})
    assert checkpoint(tmp_path).rules == []


def test_a_sample_is_said_to_be_one(tmp_path: Path, checkpoint: Look) -> None:
    save_safetensors(tmp_path / "model.safetensors", {"weight": torch.randn(1024, 256).bfloat16().float()})
    notes = checkpoint(tmp_path).report["coverage"]["notes"]
    assert notes == [f"{tmp_path}: float32 content: of 1 tensor 65,536 elements each were looked at, 0 read whole"]


# ---- PA601


def trainer_folder(folder: Path, made: Trained, **settings: Any) -> Path:
    save_safetensors(folder / "model.safetensors", dict(made.model.state_dict()))
    torch.save(made.optimizer.state_dict(), folder / "optimizer.pt")
    torch.save(argparse.Namespace(**settings), folder / "training_args.bin")
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 3}))
    return folder


def test_an_optimizer_without_the_loss_scale_of_a_float16_run_is_a_warning_that_says_why(
    tmp_path: Path, checkpoint: Look, trained: Make
) -> None:
    said = checkpoint(trainer_folder(tmp_path, trained(), fp16=True))
    assert said.rules == [("PA601", "warning")]
    finding = said.finding("PA601")
    assert finding["path"] == str(tmp_path / "optimizer.pt")
    assert finding["message"] == (
        "the checkpoint holds the optimizer and not the loss scale: "
        "a float16 loss was scaled: fp16=True in training_args.bin"
    )


@pytest.mark.parametrize(
    "settings", [{"fp16": False, "bf16": True}, {"fp16": True, "use_cpu": True}], ids=["bfloat16", "on a CPU"]
)
def test_a_run_that_scaled_nothing_has_no_scale_to_save(
    tmp_path: Path, checkpoint: Look, trained: Make, settings: dict[str, bool]
) -> None:
    assert checkpoint(trainer_folder(tmp_path, trained(), **settings)).rules == []


@pytest.mark.parametrize("enabled", [True, False])
def test_a_scaler_that_is_saved_is_enough_an_idle_one_too(
    tmp_path: Path, checkpoint: Look, trained: Make, enabled: bool
) -> None:
    folder = trainer_folder(tmp_path, trained(), fp16=True)
    torch.save({"scaler": torch.amp.GradScaler("cpu", enabled=enabled).state_dict()}, folder / "scaler.pt")
    assert checkpoint(folder).rules == []


def test_float16_weights_beside_float32_masters_prove_loss_scaling(
    tmp_path: Path, checkpoint: Look, trained: Make
) -> None:
    made = trained()
    saved = {
        "model": lower(made.model.state_dict(), torch.float16),
        "optimizer": {**made.optimizer.state_dict(), "master_weights": list(made.model.parameters())},
    }
    torch.save(saved, tmp_path / "last.pt")
    assert checkpoint(tmp_path / "last.pt").rules == [("PA601", "warning")]


# ---- folders


def test_a_missing_shard_is_named(tmp_path: Path, checkpoint: Look) -> None:
    save_safetensors(tmp_path / "model-00001-of-00002.safetensors", {"a.weight": torch.randn(8, 8)})
    index = {
        "weight_map": {"a.weight": "model-00001-of-00002.safetensors", "b.weight": "model-00002-of-00002.safetensors"}
    }
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    for path in (tmp_path, tmp_path / "model.safetensors.index.json"):
        said = checkpoint(path)
        assert said.code == 0
        line = (
            f"{tmp_path}/model-00002-of-00002.safetensors: model.safetensors.index.json names it, and it is not there"
        )
        assert said.report["coverage"]["skipped"] == [line]
        assert said.err == f"precaudit: {line}\n"


def test_checkpoints_of_several_steps_are_judged_one_by_one(tmp_path: Path, checkpoint: Look, trained: Make) -> None:
    good, bad = tmp_path / "checkpoint-1", tmp_path / "checkpoint-2"
    for folder in (good, bad):
        folder.mkdir()
        trainer_folder(folder, trained())
    torch.save(lower(trained().optimizer.state_dict()), bad / "optimizer.pt")
    said = checkpoint(tmp_path)
    assert [finding["path"] for finding in said.report["findings"]] == [str(bad / "optimizer.pt")]


# ---- what cannot be read is one line


def legacy(path: Path) -> None:
    torch.save({"weight": torch.ones(3)}, path, _use_new_zipfile_serialization=False)


def cut_short(path: Path) -> None:
    torch.save({"weight": torch.ones(3000)}, path)
    os.truncate(path, 4000)


def cut_safetensors(path: Path) -> None:
    save_safetensors(path, {"weight": torch.ones(3000)})
    os.truncate(path, 4000)


BROKEN: list[tuple[str, Callable[[Path], Any], str]] = [
    ("empty.pt", lambda p: p.touch(), "it is empty"),
    ("notes.txt", lambda p: p.write_text("hello"),
     "it is no checkpoint; safetensors, torch.save's files and torch.distributed.checkpoint are read"),
    ("legacy.pt", legacy, "it is in torch's format from before 1.6; load it once with a torch you trust it to, and "
                          "torch.save it again"),
    ("cut.pt", cut_short, "it is cut short, or no zip archive: it has no table of contents at its end"),
    ("cut.safetensors", cut_safetensors, "it is cut short: the tensor 'weight' ends at byte 12,081, and it has 4,000"),
    ("head.safetensors", lambda p: p.write_bytes((500).to_bytes(8, "little") + b"{}"),
     "it is cut short: its header alone takes 508 bytes, and it has 10"),
    ("bad.safetensors", lambda p: p.write_bytes((9).to_bytes(8, "little") + b"{broken :"),
     "its header is not valid JSON"),
    ("other.safetensors", lambda p: p.write_bytes(b"what is this, then?"),
     "it is not safetensors: it does not begin with a header"),
    ("lfs.bin", lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"),
     "it is a Git LFS pointer and not the file itself; fetch it with: git lfs pull"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "write", "reason"), BROKEN, ids=[name for name, _, _ in BROKEN])
def test_a_file_that_cannot_be_read_is_one_line_and_inconclusive(
    tmp_path: Path, checkpoint: Look, name: str, write: Callable[[Path], Any], reason: str
) -> None:
    write(tmp_path / name)
    said = checkpoint(tmp_path / name)
    assert said.code == 5
    assert said.err == (
        f"precaudit: {tmp_path / name}: {reason}\n"
        "precaudit: nothing was examined: no checkpoint here that can be read\n"
    )
    assert said.report["status"] == "inconclusive"


def test_a_path_that_is_not_there_is_a_usage_error(tmp_path: Path, checkpoint: Look) -> None:
    said = checkpoint(tmp_path / "gone.pt")
    assert (said.code, said.err) == (2, f"precaudit: {tmp_path / 'gone.pt'}: no such file or folder\n")


def test_a_file_without_tensors_is_inconclusive(tmp_path: Path, checkpoint: Look) -> None:
    torch.save({"epoch": 3, "history": {"loss": [2.0, 1.0]}}, tmp_path / "state.pt")
    said = checkpoint(tmp_path / "state.pt")
    assert said.code == 5
    assert said.report["status"] == "inconclusive"
    assert said.err == (
        "precaudit: nothing was examined: what could be read here holds no tensors; name the file or folder that does\n"
    )


def test_a_folder_without_checkpoints_is_inconclusive(tmp_path: Path, checkpoint: Look) -> None:
    assert checkpoint(tmp_path).code == 5


# ---- options


def test_rules_are_selected_and_findings_may_be_let_pass(tmp_path: Path, checkpoint: Look, trained: Make) -> None:
    file = tmp_path / "last.pt"
    torch.save(lower(whole(trained())), file)
    assert checkpoint(file, "--ignore", "PA602").code == 0
    assert checkpoint(file, "--select", "PA603").rules == []
    assert checkpoint(file, "--exit-zero").code == 0
    assert checkpoint(file, "--fail-on", "never").code == 0


@pytest.mark.parametrize("shape", ["text", "concise", "jsonl", "sarif", "github", "gitlab", "junit", "md", "html"])
def test_every_format_shows_the_finding_and_where_it_is(tmp_path: Path, trained: Make, shape: str) -> None:
    torch.save(lower(whole(trained())), tmp_path / "last.pt")
    done = subprocess.run(
        [sys.executable, "-m", "precaudit", "checkpoint", "last.pt", "--output-format", shape, "--output", "report"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
    text = (tmp_path / "report").read_text(encoding="utf-8")
    assert "last.pt" in text
    assert "PA602" in text
