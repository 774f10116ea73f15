"""What is fuzzed: one function from bytes per kind of input, its seeds, and the mutations that lead on from these."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import random
import re
import struct
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from precaudit import rulebook
from precaudit.checkpoint import run as checkpoint
from precaudit.contracts import lockfile
from precaudit.errors import PrecauditError
from precaudit.launch.gather import gather
from precaudit.launch.trace import Choice
from precaudit.patterns import Patterns
from precaudit.report import FORMATS, render
from precaudit.static.files.discovery import Found
from precaudit.static.files.run import examine

FIXTURES = Path(__file__).parents[2] / "fixtures"


class InternalError(AssertionError):
    """An input that precaudit did not take."""


@dataclass(frozen=True)
class Target:
    """One kind of input."""

    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]
    words: tuple[bytes, ...] = ()
    """Pieces that this kind is made of."""


def _file(name: str) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        result = examine(Found(f"/nowhere/{name}", name), data)
        if result.get("internal"):
            raise InternalError(result["error"])

    return run


def _patterns(data: bytes) -> None:
    lines, _, path = data.decode("utf-8", "surrogateescape").rpartition("\n")
    patterns = Patterns(lines.split("\n"))
    patterns.verdict(path.replace("\0", ""), False)
    patterns.cover(path.replace("\0", ""))


_BOOK = rulebook.load()
_ALL = Choice(rules=frozenset(_BOOK.rules))


def _report(data: bytes) -> None:
    _gathered("report.json", data)


def _rank(data: bytes) -> None:
    _gathered("rank-0-1.json", data)


def _gathered(name: str, data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / name).write_bytes(data)
        try:
            report = gather([Path(folder)], _ALL, _BOOK)
            for shape in FORMATS:
                render(report, shape, width=100)
        except PrecauditError:
            pass


def _lock(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "precision.lock"
        path.write_bytes(data)
        with contextlib.suppress(PrecauditError):
            lockfile.read(path)


def _checkpoint(data: bytes) -> None:
    name = "model.safetensors" if data[8:9] == b"{" else "model.pt"
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / name).write_bytes(data)
        before = set(os.listdir(folder))
        with contextlib.suppress(PrecauditError):
            checkpoint.examine([str(Path(folder) / name)])
        if set(os.listdir(folder)) != before:
            raise InternalError("it wrote into the folder")


def _notebook(source: str) -> bytes:
    cells = [{"cell_type": "code", "source": source.splitlines(keepends=True), "metadata": {}, "outputs": []}]
    return json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}, indent=1).encode()


def _safetensors() -> bytes:
    header = {"w": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8]}, "__metadata__": {"format": "pt"}}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(8)


def _zip() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"step": 3, "state": {"w": [1.0, 2]}}, 2))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/data/0", bytes(16))
    return out.getvalue()


RANK: dict[str, Any] = {
    "format": 1, "rank": 0, "world_size": 2, "pid": 1, "status": "finished", "steps": 2, "exact": None, "inventory": [],
    "coverage": {"steps": 2, "attempts": 3, "ranks": 1, "notes": ["a"], "setup": {"torch": "2.13"}}, "python": "3.11",
    "facts": [{"kind": "holds", "dtype": "bfloat16", "role": "optimizer_state", "witness": "trace",
               "site": ["train.py", 3, 1, 3, 9, "main"], "evidence": {"updates_lost": 0.5}, "attrs": {}}],
}  # fmt: skip
REPORT: dict[str, Any] = {
    "format_version": 1, "tool": {"name": "precaudit", "version": "1"}, "command": "trace", "status": "findings",
    "findings": [{"rule": "PA301", "name": "low-precision-optimizer-state", "severity": "error", "message": "m",
                  "path": "a.py", "line": 1, "column": 1, "role": "optimizer_state", "dtype": "bfloat16", "fix": "f"}],
    "roles": [], "coverage": {"steps": 2, "ranks": 1}, "facts": [],
}  # fmt: skip
LOCK = 'format = 1\nscript = "train.py"\n\n[roles]\noptimizer_state = "float32"\n'
DEEPSPEED = (
    b'{"fp16": {"enabled": true, "loss_scale": 0}, "bf16": {"enabled": "auto"}, "zero_optimization": {"stage": 2}}'
)
JSON = (b"null", b"NaN", b"1e999", b"[[[[", b'"\\ud800"', b"-0", b"{}", b"[]", b"true", b'":"', b"99999999999999999999")
TORCH = tuple(
    word.encode()
    for word in sorted(set(re.findall(r"[\w.]+", (FIXTURES / "scripts" / "gpt_bf16_adamw.py").read_text())))
)
SOURCES = tuple(path.read_bytes() for path in sorted(FIXTURES.glob("PA*/bad.py")))

TARGETS: Mapping[str, Target] = {
    "source": Target(
        _file("x.py"), SOURCES, (*TORCH, b"\n", b"    ", b"(", b"*", b"lambda: ", b"match x:\n case ", b"0x"),
    ),
    "notebook": Target(_file("x.ipynb"), tuple(_notebook(one.decode()) for one in SOURCES[:8]), (*JSON, b"%%bash\\n")),
    "json config": Target(_file("ds_config.json"), (DEEPSPEED,), JSON),
    "yaml config": Target(
        _file("config.yaml"), (b"mixed_precision: bf16\nfp16: {enabled: true}\n",),
        (b"!!int ", b"!!timestamp x", b"&a ", b"*a", b"- ", b": ", b"? ", b"|\n", b"{", b"<<: *a\n", b"!!bool "),
    ),
    "patterns": Target(
        _patterns, (b"*.py\n!a/\n/b/**/c\n[a-z]?x\na/b.py",),
        (b"**", b"[!a-", b"[[:alpha:]]", b"\\", b"!", b"/", b"*a" * 9, b" "),
    ),
    "report": Target(_report, (json.dumps(REPORT).encode(),), (*JSON, b"\\u001b[31m", b"\\u202e", b"::error::")),
    "rank file": Target(_rank, (json.dumps(RANK).encode(),), (*JSON, b"holds", b"float16", b"\\u001b")),
    "checkpoint": Target(
        _checkpoint, (pickle.dumps({"w": 1.0, "step": 3}), _zip(), _safetensors()),
        (b"cos\nsystem\n", b"R", b"}", b"\x8a\xff", b"\x94", b"PK\x03\x04", b"BF16", b"[9,9,9]",
         b"ctorch\nFloatStorage\n"),
    ),
    "lock": Target(
        _lock, (LOCK.encode(),), (b"[[x]]\n", b"= 1\n", b'"""', b"9" * 40, b"[roles]\n", b"{a = 1}", b"\\U0001"),
    ),
}  # fmt: skip


def mutated(target: Target, chance: random.Random) -> bytes:
    """A seed of this kind after a few changes: bytes and words exchanged, pieces doubled, moved and left out."""
    data = bytearray(chance.choice(target.seeds))
    for _ in range(chance.randrange(1, 8)):
        at = chance.randrange(len(data) + 1)
        to = min(len(data), at + chance.randrange(1, 40))
        kind = chance.randrange(7)
        if kind == 0 and data:
            data[min(at, len(data) - 1)] = chance.randrange(256)
        elif kind == 1:
            del data[at:to]
        elif kind == 2:
            data[at:at] = data[at:to] * chance.choice((1, 1, 2, 50))
        elif kind == 3 and target.words:
            data[at:to] = chance.choice(target.words)
        elif kind == 4 and target.words:
            data[at:at] = chance.choice(target.words)
        elif kind == 5:
            other = chance.choice(target.seeds)
            start = chance.randrange(len(other) + 1)
            data[at:to] = other[start : start + chance.randrange(80)]
        else:
            del data[at:]
    return bytes(data)
