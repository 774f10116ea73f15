"""Nothing in a checkpoint is ever run: a pickle is read as data, a malicious one too."""

from __future__ import annotations

import collections
import contextlib
import os
import pickle
import pickletools
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Said
from hypothesis import given, settings
from hypothesis import strategies as st

from precaudit.checkpoint import leaves, pickles
from precaudit.checkpoint.leaves import Unreadable
from precaudit.checkpoint.pickles import Global, Made

Look = Callable[..., Said]


class Runs:
    """Pickles as a call of os.system, the way exploits do."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


class RunsWhenBuilt(Runs):
    """Hides the call behind torch's own way of making a tensor subclass again."""

    def __reduce__(self) -> tuple[Any, ...]:
        return torch._tensor._rebuild_from_type_v2, (os.system, torch.Tensor, (self.command,), {})


def archive(path: Path, data: bytes) -> None:
    """The zip that torch.save would write around this pickle."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", data)
        file.writestr("archive/byteorder", "little")


@pytest.mark.parametrize("kind", [Runs, RunsWhenBuilt])
@pytest.mark.parametrize("nested", [False, True])
def test_a_malicious_checkpoint_is_named_in_one_line_and_not_run(
    tmp_path: Path, checkpoint: Look, kind: type[Runs], nested: bool
) -> None:
    proof, file = tmp_path / "proof", tmp_path / "evil.pt"
    evil: Any = kind(f"touch {proof}")
    weights = {"weight": torch.randn(8, 8)}
    torch.save({"model": weights, "extra": [("deep", {"er": evil})] if nested else evil}, file)
    said = checkpoint(file)
    assert not proof.exists()
    assert said.held == {"forward_weight": {"float32": 1}}
    assert said.report["coverage"]["notes"] == [
        f"{file}: unpickling it would also call {os.system.__module__}.system; nothing of it was called here"
    ]
    with contextlib.suppress(AttributeError):
        torch.load(file, weights_only=False)
    assert proof.exists(), "the file is as malicious as it was meant to be"


def test_a_malicious_metadata_file_is_not_run(tmp_path: Path, checkpoint: Look) -> None:
    proof = tmp_path / "proof"
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Runs(f"touch {proof}")))
    said = checkpoint(tmp_path)
    assert said.code == 5
    assert said.err.startswith(
        f"precaudit: {tmp_path}/.metadata: it is not the metadata of torch.distributed.checkpoint\n"
    )
    assert not proof.exists()


def test_a_dotted_name_that_leads_out_of_a_harmless_module_is_told(tmp_path: Path, checkpoint: Look) -> None:
    data = b"\x80\x04\x8c\x07pathlib\x8c\x09os.system\x93\x8c\x04true\x85R."
    pickletools.dis(data, out=open(os.devnull, "w"))  # noqa: SIM115
    archive(tmp_path / "evil.pt", data)
    notes = checkpoint(tmp_path / "evil.pt").report["coverage"]["notes"]
    assert notes == [
        f"{tmp_path}/evil.pt: unpickling it would also call pathlib.os.system; nothing of it was called here"
    ]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x80\x02}q\x00(X\x05\x00\x00\x00mod", "its pickle is broken or cut short (expected 5 bytes in a "
                                                "unicodestring4, but only 3 remain)"),
        (b"", "its pickle is broken or cut short (pickle exhausted before seeing STOP)"),
        (b"\x80\x04]\x94h\x00a.", ""),
        (b"\x80\x04" + b"(" * 5, "its pickle is broken or cut short (pickle exhausted before seeing STOP)"),
        (b"\x80\x04R.", "its pickle is broken or cut short (pop from empty list)"),
        (b"\x80\x04" + b"]\x94" + b"".join(b"](h%ch%ce\x94" % (n, n) for n in range(60)) + b".",
         "it holds more than 20,000 values beside its tensors"),
    ],
    ids=["cut short", "empty", "a list in itself", "marks only", "a call of nothing", "a billion laughs"],
)  # fmt: skip
def test_a_broken_pickle_is_one_line(
    tmp_path: Path, checkpoint: Look, monkeypatch: pytest.MonkeyPatch, data: bytes, reason: str
) -> None:
    monkeypatch.setattr(leaves, "MOST_VALUES", 20_000)
    archive(tmp_path / "odd.pt", data)
    said = checkpoint(tmp_path / "odd.pt")
    if reason:
        assert said.err.splitlines()[0] == f"precaudit: {tmp_path}/odd.pt: {reason}"
    assert said.code in (0, 5)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(max_size=300),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=30,
)


@given(plain, st.integers(0, pickle.HIGHEST_PROTOCOL))
@settings(max_examples=150, deadline=None)
def test_plain_values_are_read_as_pickle_itself_reads_them(value: Any, protocol: int) -> None:
    read = pickles.read(pickle.dumps(value, protocol))
    if protocol > 2:
        assert read.value == value
        assert read.called == ()


@given(st.binary(max_size=400))
@settings(max_examples=300, deadline=None)
def test_any_bytes_at_all_are_a_pickle_or_unreadable(data: bytes) -> None:
    reason = ""
    try:
        pickles.read(data)
    except Unreadable as error:
        reason = str(error)
    assert "\n" not in reason


def test_objects_are_kept_as_what_would_have_been_called() -> None:
    read = pickles.read(pickle.dumps({"a": collections.OrderedDict(x=1), "b": Runs("true")}))
    ordered = read.value["a"]
    assert isinstance(ordered, Made)
    assert (ordered.callee, ordered.items) == (Global("collections", "OrderedDict"), {"x": 1})
    assert read.value["b"].args == ("true",)
    assert Global(os.system.__module__, "system") in read.called


def test_the_command_needs_no_torch(tmp_path: Path) -> None:
    torch.save({"weight": torch.randn(8, 8)}, tmp_path / "model.pt")
    program = (
        "import sys\nsys.modules['torch'] = sys.modules['numpy'] = None\n"
        "from precaudit.cli import run\nsys.exit(run(['checkpoint', 'model.pt']))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
