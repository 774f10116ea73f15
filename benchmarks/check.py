"""Checks eight training libraries and prints findings and CPU seconds beside ast.parse, ruff and TorchFix.

usage: python benchmarks/check.py [FOLDER] [--only NAME]
"""

from __future__ import annotations

import argparse
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

LIBRARIES = {
    "transformers": "5.23.0",
    "deepspeed": "0.19.8",
    "timm": "1.0.31",
    "peft": "0.21.2",
    "trl": "1.16.0",
    "torchtune": "0.6.1",
    "lightning": "2.6.6",
    "accelerate": "1.15.0",
}


def fetch(name: str, version: str, folder: Path) -> Path:
    """The unpacked sources of one library, downloaded once."""
    target = folder / f"{name}-{version}"
    if not target.exists():
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", f"{name}=={version}", "-d", str(folder)]
        subprocess.run(command, check=True)
        archive = next(p for p in folder.iterdir() if p.is_file() and p.name.lower().startswith(f"{name}-{version}"))
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as packed:
                packed.extractall(target)
        else:
            with tarfile.open(archive) as packed:
                packed.extractall(target, filter="data")
    return next(p for p in target.rglob(name) if p.is_dir() and (p / "__init__.py").exists())


def cpu_seconds(command: list[str]) -> tuple[float, str]:
    """User and system seconds of a command with all its children, and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def main() -> None:
    ask = argparse.ArgumentParser()
    ask.add_argument("folder", nargs="?", type=Path, default=Path(tempfile.gettempdir()) / "precaudit-bench")
    ask.add_argument("--only", default="")
    args = ask.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    peers = [name for name in ("ruff", "torchfix") if shutil.which(name)]
    print(f"{'library':14} {'files':>6} {'cold':>7} {'warm':>7} {'ast.parse':>9} " + " ".join(f"{p:>8}" for p in peers))
    for name, version in LIBRARIES.items():
        if not name.startswith(args.only):
            continue
        source = fetch(name, version, args.folder)
        with tempfile.TemporaryDirectory() as scratch:
            tool = ["env", f"PRECAUDIT_CACHE_DIR={scratch}", sys.executable, "-m", "precaudit", "check", str(source)]
            tool += ["--output-format", "concise"]
            cold, printed = cpu_seconds(tool)
            warm, _ = cpu_seconds(tool)
        files = list(source.rglob("*.py"))
        code = f"import ast, pathlib\nfor p in pathlib.Path({str(source)!r}).rglob('*.py'): ast.parse(p.read_bytes())"
        parsed, _ = cpu_seconds([sys.executable, "-W", "ignore", "-c", code])
        rows = []
        for peer in peers:
            command = [peer, "check", "--no-cache", str(source)] if peer == "ruff" else [peer, str(source)]
            rows.append(cpu_seconds(command)[0])
        print(
            f"{name:14} {len(files):6} {cold:7.2f} {warm:7.2f} {parsed:9.2f} " + " ".join(f"{s:8.2f}" for s in rows),
            f" {printed.strip().splitlines()[-1] if printed.strip() else 'no output'}",
        )


if __name__ == "__main__":
    main()
