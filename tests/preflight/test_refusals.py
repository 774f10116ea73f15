"""What a preflight does not do it refuses in one line, which says what to do instead."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import harness
import pytest
import torch
from refusals import answer, rows
from torch import nn

from precaudit import cli
from precaudit.preflight import autocast, late, room
from precaudit.preflight.assumed import Refused
from precaudit.preflight.layer import Layer, start
from precaudit.preflight.patches import Patches
from precaudit.preflight.placement import Current

SCRIPTS = Path(__file__).parent / "scripts"

WORDS = {
    "--data FAKE": ["--data", "FAKE"],
    "--fake --exact": ["--fake", "--exact"],
    "--rank 1 alone": ["--rank", "1"],
    "--rank 8 of 8": ["--world-size", "8", "--rank", "8"],
    "--nproc-per-node gpu of several nodes": ["torchrun", "--nnodes", "2", "--nproc-per-node", "gpu"],
    "deepspeed --num_gpus 0": ["deepspeed", "--num_gpus", "0"],
}
"""A row of docs/preflight.md -> what is typed."""
OTHERS = {
    "an operation whose size hangs on numbers",
    "a tensor of more than 64 TiB",
    "no room for addresses",
    "a torch without headers",
    "torch older than 2.9",
}
"""Rows that have a test of their own, here or in test_fake.py."""


def test_each_row_of_the_page_has_a_test() -> None:
    assert set(rows()) == {*WORDS, *OTHERS}


@pytest.mark.parametrize("asked", WORDS)
def test_what_cannot_be_asked_for_is_answered_in_one_line(asked: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["preflight", *WORDS[asked], "train.py"]) == 2
    assert capsys.readouterr().err == f"precaudit: {answer(asked)}\n"


def test_a_triton_launch_names_its_kernel() -> None:
    class JITFunction:
        __name__ = "softmax_kernel"

    module, patches = types.SimpleNamespace(JITFunction=JITFunction), Patches()
    late.CHANGES["triton.runtime.jit"](patches, Current(1), module)
    with pytest.raises(Refused) as refused:
        JITFunction().run(grid=(1,))  # type: ignore[attr-defined]
    patches.close()
    assert str(refused.value) == (
        "precaudit preflight: the Triton kernel softmax_kernel was launched, and there is no GPU to run it; "
        'switch it off for this run, as with attn_implementation="sdpa", or trace on a GPU'
    )
    assert not hasattr(JITFunction, "run")


def test_a_torch_without_its_headers_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(Refused) as refused:
        autocast.header()
    assert str(refused.value) == f"precaudit preflight: {answer('a torch without headers')}"


def test_a_machine_that_reserves_no_addresses_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(room.mmap, "mmap", full)
    with pytest.raises(Refused) as refused:
        room.reserved.__wrapped__()
    line = answer("no room for addresses", why="[Errno 12] Cannot allocate memory")
    assert str(refused.value) == f"precaudit preflight: {line}"


def test_an_older_torch_is_refused_and_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    available = torch.cuda.is_available
    monkeypatch.delattr(torch.library, "get_kernel")
    with pytest.raises(Refused) as refused:
        start({"device": "h100"})
    line = answer("torch older than 2.9", version=torch.__version__)
    assert str(refused.value) == f"precaudit preflight: {line}"
    assert torch.cuda.is_available is available


def test_a_refusal_ends_the_command_with_its_line(tmp_path: Path) -> None:
    """The program would only fail later, for want of a device."""
    from precaudit.runtime import sitecustomize

    folder = tmp_path / "private"
    (folder / "_precaudit" / "preflight").mkdir(parents=True)
    for package in ("_precaudit", "_precaudit/preflight"):
        (folder / package / "__init__.py").touch()
    refusing = (
        "class Refused(RuntimeError): pass\ndef start(settings): raise Refused('precaudit preflight: no; do so')\n"
    )
    (folder / "_precaudit" / "preflight" / "layer.py").write_text(refusing)
    (folder / "settings.json").write_text('{"preflight": {"device": "h100"}}')
    code = (
        f"import importlib.util as u\nspec = u.spec_from_file_location('boot', {sitecustomize.__file__!r})\n"
        "boot = u.module_from_spec(spec)\nspec.loader.exec_module(boot)\n"
        f"boot.start_runtime({str(folder)!r}, '_precaudit')\nprint('went on')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert (folder / "refused").read_text() == "precaudit preflight: no; do so"


def test_fsdp1_takes_a_bare_device_number(layer: Layer, free_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port}.items():
        monkeypatch.setenv(name, str(value))
    with harness.unchanged_world():
        torch.distributed.init_process_group("nccl")
        model = FullyShardedDataParallel(nn.Linear(4, 4), device_id=torch.cuda.current_device())
        model(torch.ones(2, 4, device="cuda")).sum().backward()
        assert next(model.parameters()).is_cuda


def test_the_command_prints_what_is_real_and_what_is_assumed(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "precaudit", "preflight", "--output", "report.json", str(SCRIPTS / "imagenet.py")]
    done = subprocess.run(
        words, cwd=tmp_path, capture_output=True, text=True, check=False, env=os.environ | {"COLUMNS": "160"}
    )
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert "as on a GPU, on this CPU: steps 2 and 3 are watched" in lines[0]
    opening = "preflight: CUDA's dtypes on a CPU; values are the CPU's · as on one NVIDIA H100"
    assert any(line.startswith(opening) for line in lines)
    told = json.loads((tmp_path / "report.json").read_text())["preflight"]
    assert (told["device"], told["values"], told["memory"]) == ("h100", "cpu", 80 * 10**9)
    assert told["real"][0] == "dtypes of every tensor, CUDA's autocast included"
