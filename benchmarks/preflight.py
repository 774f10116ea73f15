"""Runs `precaudit preflight --fake` on large models: CPU seconds, peak memory, and each rank's bytes by the arithmetic.

    .venv-frameworks/bin/python benchmarks/preflight.py [NAME ...]

Writes benchmarks/results/preflight-DATE.json. Ends with 1 where a rank's bytes are not those of the arithmetic.
"""

from __future__ import annotations

import datetime
import json
import platform
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "tests" / "preflight" / "scripts"
WIDTH, DEPTH, HEADS, KEYS, INNER, WORDS = 16384, 126, 128, 8, 53248, 128256
"""Llama 405B. KEYS: heads of keys and values."""
TENSOR, DATA = 8, 2048
"""Ranks that share a layer, and that many times over: 16,384."""
PARAMETERS = {
    "llama-8b": 8_030_261_248,
    "llama-70b": 70_553_706_496,
    "mixtral": 46_702_792_704,
    "vit-22b": None,
    "sdxl": None,
}
"""As their makers count them; None where the script's model is only like the published one, and counts itself."""


def of_405b() -> int:
    """Parameters that rank 0 holds: rows of each tensor rank's part over the data ranks, rounded up."""

    def rows(count: int) -> int:
        return -(-(count // TENSOR) // DATA)

    by_columns = rows(WIDTH) + 2 * rows(KEYS * (WIDTH // HEADS)) + 2 * rows(INNER)
    by_rows = (WIDTH // DATA) * (WIDTH // TENSOR + INNER // TENSOR)
    norm = WIDTH // DATA
    return DEPTH * (by_columns * WIDTH + by_rows + 2 * norm) + 2 * rows(WORDS) * WIDTH + norm


def run(name: str) -> dict[str, Any]:
    """One model's figures."""
    if name == "llama-405b":
        sizes = map(str, (WIDTH, DEPTH, HEADS, KEYS, INNER, WORDS, TENSOR, 8192))
        launcher = ["torchrun", "--nnodes", str(TENSOR * DATA // 8), "--nproc-per-node", "8"]
        words, held = [*launcher, str(SCRIPTS / "llama.py"), *sizes], of_405b()
    else:
        words, held = [str(SCRIPTS / "shapes.py"), name], PARAMETERS[name] or 0
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.json"
        command = [sys.executable, "-m", "precaudit", "preflight", "--fake", "--output", str(path), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if not path.exists():
            raise SystemExit(done.stderr)
        report = json.loads(path.read_text())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    counted = [line for line in done.stdout.splitlines() if line.startswith(name)]
    held = held or int(counted[0].split()[1])
    found: dict[str, int] = {}
    for row in report["roles"]:
        found[row["role"]] = found.get(row["role"], 0) + row["bytes"]
    lasting = {role: found.get(role, 0) for role in ("master_weight", "gradient", "optimizer_state")}
    return {
        "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "peak_gigabytes_so_far": round(after.ru_maxrss / 1e6, 2),
        "ranks": report["preflight"]["ranks"],
        "parameters_of_the_rank": held,
        **lasting,
        "as_computed": list(lasting.values()) == [4 * held, 4 * held, 8 * held],
        "loud": sorted({one["rule"] for one in report["findings"] if one["severity"] != "note"}),
    }


def main(names: list[str]) -> int:
    results = {}
    for name in names or ["sdxl", "llama-8b", "vit-22b", "mixtral", "llama-70b", "llama-405b"]:
        results[name] = run(name)
        print(name, json.dumps(results[name]))
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    told = {
        "date": today,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    path = ROOT / "benchmarks" / "results" / f"preflight-{today}.json"
    if path.exists():
        results = {**json.loads(path.read_text())["models"], **results}
    path.write_text(json.dumps({**told, "models": results}, indent=2) + "\n", encoding="utf-8")
    return 0 if all(one["as_computed"] for one in results.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
