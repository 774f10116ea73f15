"""A checkpoint of 10 GB takes less than 100 MB of memory, though every value of it is read."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SIZE = 10_000_000_000
LIMIT_KB = 100_000


def sparse_safetensors(path: Path) -> None:
    """One float32 tensor of 10 GB that is all hole, with bfloat16 values at its start."""
    header = {"weight": {"dtype": "F32", "shape": [SIZE // 4], "data_offsets": [0, SIZE]}}
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    start = torch.randn(1024).bfloat16().float().numpy().tobytes()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + start)
    os.truncate(path, 8 + len(raw) + SIZE)


def sparse_torch_zip(path: Path) -> None:
    """What torch.save writes, its one storage stretched to 10 GB of hole; the table of contents in zip64."""
    small = path.with_suffix(".small")
    torch.save({"weight": torch.zeros(7777)}, small)
    with zipfile.ZipFile(small) as source:
        pickle = source.read("big/data.pkl").replace(
            b"M" + struct.pack("<H", 7777), b"\x8a\x05" + (SIZE // 4).to_bytes(5, "little")
        )
    small.unlink()
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("big/data.pkl", pickle)
        file.writestr("big/byteorder", "little")
        directory, entries = file.start_dir, len(file.namelist())
    table = path.read_bytes()[directory:]
    table = table[: table.index(b"PK\x05\x06")]
    name, sizes = b"big/data/0", struct.pack("<2H2Q", 1, 16, SIZE, SIZE)
    large = (0xFFFFFFFF, 0xFFFFFFFF, len(name), len(sizes))
    with path.open("r+b") as raw:
        raw.seek(directory)
        raw.write(struct.pack("<4s5H3I2H", b"PK\x03\x04", 45, 0, 0, 0, 33, 0, *large) + name + sizes)
        raw.write(torch.randn(1024).bfloat16().float().numpy().tobytes())
        begin = directory + 30 + len(name) + len(sizes) + SIZE
        raw.seek(begin)
        table += struct.pack("<4s6H3I5H2I", b"PK\x01\x02", 45, 45, 0, 0, 0, 33, 0, *large, 0, 0, 0, 0, directory)
        table += name + sizes
        raw.write(table)
        count = entries + 1
        raw.write(struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, len(table), begin))
        raw.write(struct.pack("<4sIQI", b"PK\x06\x07", 0, begin + len(table), 1))
        raw.write(struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, count, count, len(table), 0xFFFFFFFF, 0))


MEASURE = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(code)
"""
"""Between this process and the command: what is forked from a process with torch begins with all its memory."""


@pytest.mark.skipif(sys.platform == "win32", reason="peak memory of a child is measured with getrusage")
@pytest.mark.parametrize(
    ("name", "write"),
    [("big.safetensors", sparse_safetensors), ("big.pt", sparse_torch_zip)],
    ids=["safetensors", "torch"],
)
def test_ten_gigabytes_are_examined_in_a_hundred_megabytes(
    tmp_path: Path, name: str, write: Callable[[Path], None]
) -> None:
    write(tmp_path / name)
    stat = (tmp_path / name).stat()
    assert stat.st_size > SIZE
    assert stat.st_blocks * 512 < SIZE // 100, "the file system keeps no holes"
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            MEASURE,
            sys.executable,
            "-m",
            "precaudit",
            "checkpoint",
            "--output-format",
            "json",
            name,
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    report = json.loads(done.stdout)
    assert [(row["role"], row["bytes"]) for row in report["roles"] if row["dtype"]] == [("forward_weight", SIZE)]
    assert [finding["rule"] for finding in report["findings"]] == ["PA603"]
    peak = int(done.stderr.split()[-1]) // (1024 if sys.platform == "darwin" else 1)
    assert peak < LIMIT_KB, f"{peak:,} kB"
