"""Checks eight libraries, training scripts and single files: CPU seconds beside ast.parse, ruff and TorchFix.

The training scripts are the fixtures, each written in four styles: as it is, in a function, in a class, behind flags.
Sources and peers are downloaded once into FOLDER. Every command of a row is run ROUNDS times, one after the other in
each round, single files 20 times at least, and the least CPU time (user and system, children included) of each counts;
ratios are of these minima.
Take the ratios: seconds are this machine's. TorchFix runs on the small trees only, and once.
Exits 1 where a library has errors, more than one warning per 100 files, or a file that could not be read.
"""

from __future__ import annotations

import argparse
import ast
import datetime
import json
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
import textwrap
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
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
STYLES = {
    "script": "{imports}{code}",
    "function": "{imports}def main():\n{code1}\nif __name__ == '__main__':\n    main()\n",
    "experiment": """{imports}class Experiment:
    def __init__(self, amp):
        self.amp = amp

    def run(self):
{code2}
for amp in (True, False):
    Experiment(amp).run()
""",
    "flags": """{imports}import argparse
parser = argparse.ArgumentParser()
parser.add_argument("--amp", action="store_true")
parser.add_argument("--epochs", type=int, default=3)
def main(args):
    for epoch in range(args.epochs):
        with torch.autocast("cuda", torch.bfloat16, enabled=args.amp):
{code3}
main(parser.parse_args())
""",
}
"""How a training script may be written around its code, which stands one, two or three levels deep."""
TORCHFIX = "0.7.0"
TORCHFIX_ON = ("torchtune", "accelerate")
"""TorchFix takes 1,500 s for transformers."""
GOALS = {"transformers cold": 6.0, "transformers warm": 0.25, "torchtune cold": 2.0, "triggers": 0.35, "rejected": 0.08}
"""CPU seconds on a quiet machine; `rejected` above bare Python."""
MEMORY_GOAL = 150
"""MiB, the largest process."""
SHAPE = "{:13} {:8} {:>5} {:>5} {:>6} {:>8} {:>6} {:>6} {:>5} {:>8} {:>4} {:>12} {:>15}"
HEADINGS = "library release files kLOC errors warnings unread cold warm cold/ast MiB ruff(/cold) TorchFix(/cold)"
AST = "import ast, pathlib, sys\nfor p in pathlib.Path(sys.argv[1]).rglob('*.py'): ast.parse(p.read_bytes())"
UNIT = (
    "import time, libcst, pathlib\n"
    "text = (pathlib.Path(libcst.__file__).parent / '_nodes' / 'expression.py').read_text()\n"
    "times = []\n"
    "for _ in range(5):\n"
    "    start = time.process_time()\n"
    "    libcst.parse_module(text)\n"
    "    times.append(time.process_time() - start)\n"
    "print(round(1e6 * min(times) / text.count('\\n'), 1))\n"
)
"""Tells what parsing 1,000 lines with LibCST costs here, in ms: how fast this machine is, in the unit of all this."""
CHILD = (
    "import json, resource, subprocess, sys\n"
    "done = subprocess.run(sys.argv[2:], stdout=subprocess.PIPE, stderr=subprocess.PIPE)\n"
    "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
    "json.dump([used.ru_utime + used.ru_stime, used.ru_maxrss / 1024], open(sys.argv[1], 'w'))\n"
    "sys.stdout.buffer.write(done.stdout)\n"
)
"""Runs a command below a process of its own, whose children are this command's alone."""


def download(name: str, release: str, folder: Path) -> Path:
    """The unpacked sources of one library, downloaded once."""
    target = folder / f"{name}-{release}"
    if not target.exists():
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", f"{name}=={release}", "-d", str(folder)]
        subprocess.run(command, check=True)
        archive = next(p for p in folder.iterdir() if p.is_file() and p.name.lower().startswith(f"{name}-{release}"))
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as packed:
                packed.extractall(target)
        else:
            with tarfile.open(archive) as packed:
                packed.extractall(target, filter="data")
    return next(p for p in target.rglob(name) if p.is_dir() and (p / "__init__.py").exists())


def training_tree(folder: Path) -> Path:
    """A folder of training scripts, about 70,000 lines: every fixture in every style."""
    target = folder / "training"
    for script in sorted((ROOT / "fixtures").glob("*/*.py")):
        text = script.read_text()
        for style, shape in STYLES.items() if "import torch" in text else ():
            made = target / style / f"{script.parent.name}_{script.name}"
            made.parent.mkdir(parents=True, exist_ok=True)
            made.write_text(styled(text, shape))
    return target


def styled(text: str, shape: str) -> str:
    """The code of a script written in another shape, behind its imports."""
    lines = text.splitlines(keepends=True)
    imports = ""
    for statement in reversed(ast.parse(text).body):
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            first, last = statement.lineno - 1, statement.end_lineno or 0
            imports = "".join(lines[first:last]) + imports
            del lines[first:last]
    code = "".join(lines)
    deeper = {f"code{depth}": textwrap.indent(code, "    " * depth) for depth in (1, 2, 3)}
    return shape.format(imports=imports, code=code, **deeper)


def trees(folder: Path, only: str) -> Iterator[tuple[str, str, Path]]:
    """(name, release, path) of what is checked, made when it is reached."""
    for name, release in LIBRARIES.items():
        if name.startswith(only):
            yield name, release, download(name, release, folder)
    if "training".startswith(only):
        yield "training", "-", training_tree(folder)


def torchfix(folder: Path) -> list[str]:
    """The command that runs TorchFix, installed once beside the sources; it shares this environment's LibCST."""
    target = folder / f"torchfix-{TORCHFIX}"
    if not target.exists():
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target)]
        subprocess.run([*command, f"torchfix=={TORCHFIX}"], check=True)
    code = f"import sys; sys.path.insert(0, {str(target)!r}); from torchfix.__main__ import main; main()"
    return [sys.executable, "-c", code, "-j1"]


class Run:
    """Runs commands and keeps the least that each has cost."""

    def __init__(self, folder: Path) -> None:
        self.environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(folder / "pycache"), "PYTHONWARNINGS": "ignore"}
        self.environment.pop("PYTHONDONTWRITEBYTECODE", None)

    def once(self, command: Sequence[str], cache: str = "") -> tuple[float, float, str]:
        """CPU seconds, the largest process in MiB, and what was printed."""
        environment = {**self.environment, **({"PRECAUDIT_CACHE_DIR": cache} if cache else {})}
        with tempfile.NamedTemporaryFile("r") as file:
            done = subprocess.run(
                [sys.executable, "-c", CHILD, file.name, *command], capture_output=True, text=True, env=environment
            )
            seconds, memory = json.load(file)
        return seconds, memory, done.stdout

    def least(self, rounds: int, rows: Mapping[str, Sequence[str]]) -> dict[str, float]:
        """Name -> the least CPU seconds of its command, all commands taking turns."""
        found: dict[str, float] = {}
        for _ in range(rounds):
            for name, command in rows.items():
                found[name] = min(self.once(command)[0], found.get(name, float("inf")))
        return found


def check(*words: str) -> list[str]:
    return [str(Path(sys.executable).with_name("precaudit")), "check", *words]


def judge(run: Run, source: Path) -> dict[str, Any]:
    """What precaudit says of a library."""
    _, memory, printed = run.once(check("--no-cache", "--jobs", "1", "--output-format", "json", str(source)))
    report = json.loads(printed)
    severities = Counter(f["severity"] for f in report["findings"] if not f["suppressed"])
    return {
        "files": report["coverage"]["files"],
        "not_read": len(report["coverage"]["skipped"]),
        "errors": severities["error"],
        "warnings": severities["warning"],
        "memory": round(memory),
        "rules": dict(Counter(f["rule"] for f in report["findings"] if f["severity"] != "note")),
    }


def measure(run: Run, source: Path, rounds: int, peers: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """CPU seconds of a library: cold, warm, ast.parse of the same files, and the peers, all in turn."""
    commands = {"ast.parse": [sys.executable, "-c", AST, str(source)]}
    commands |= {name: [*command, str(source)] for name, command in peers.items()}
    found: dict[str, list[float]] = {}
    for number in range(rounds):
        with tempfile.TemporaryDirectory() as cache:
            for name in ("cold", "warm", "warm", "warm"):
                found.setdefault(name, []).append(run.once(check(str(source)), cache)[0])
        for name, command in commands.items():
            if name == "TorchFix" and number:
                continue
            found.setdefault(name, []).append(run.once(command)[0])
    return {name: min(seconds) for name, seconds in found.items()}


def first(path: Path, most: int) -> list[str]:
    """The first lines of a source, up to where a definition begins that would be cut."""
    lines = path.read_text().splitlines()
    if len(lines) <= most:
        return lines
    return lines[: max(n for n in range(most) if lines[n].startswith(("def ", "class ", "@")))]


def single_files(run: Run, rounds: int, folder: Path) -> dict[str, float]:
    """CPU seconds of one file of 1,000 lines, above bare Python: rejected at a glance, parsed, and with findings."""
    models = download("transformers", LIBRARIES["transformers"], folder)
    plain = first(models / "generation" / "logits_process.py", 1000)
    script = (ROOT / "fixtures" / "scripts" / "gpt_bf16_adamw.py").read_text().splitlines()
    deepgemm = models / "integrations" / "deepgemm.py"
    findings = first(deepgemm, 1000 - len(script)) + script
    files = {"rejected": plain, "triggers": first(deepgemm, 1000), "findings": findings}
    made = folder / "single"
    made.mkdir(exist_ok=True)
    rows: dict[str, Sequence[str]] = {"bare Python": [sys.executable, "-c", "pass"]}
    rows["import libcst"] = [sys.executable, "-c", "import libcst"]
    for name, lines in files.items():
        (made / f"{name}.py").write_text("\n".join(lines) + "\n")
        rows[name] = check("--no-cache", "--output-format", "concise", str(made / f"{name}.py"))
    return run.least(max(rounds, 20), rows)


def machine() -> dict[str, Any]:
    """What the figures depend on, without names of hosts or users."""
    return {
        "date": datetime.date.today().isoformat(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "parse_module ms/kLOC": float(subprocess.check_output([sys.executable, "-c", UNIT], text=True)),
        "python": platform.python_version(),
        **{name: version(name) for name in ("libcst", "ruff")},
        "torchfix": TORCHFIX,
    }


def main() -> int:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    ask.add_argument("folder", nargs="?", type=Path, default=Path(tempfile.gettempdir()) / "precaudit-bench")
    ask.add_argument("--only", default="", help="only the libraries, or `training`, whose names begin so")
    ask.add_argument("--rounds", type=int, default=3)
    ask.add_argument("--write", action="store_true", help="keep the figures in benchmarks/results/")
    args = ask.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    run = Run(args.folder)
    ruff = [str(Path(sys.executable).with_name("ruff")), "check", "--no-cache", "--isolated", "--exit-zero", "-q"]
    described = machine()
    print(*(f"{key} {value}" for key, value in described.items()), sep=" · ", flush=True)
    print()
    print(SHAPE.format(*HEADINGS.split()), flush=True)
    results: dict[str, Any] = {}
    failed = False
    for name, release, source in trees(args.folder, args.only):
        lines = sum(path.read_bytes().count(b"\n") for path in source.rglob("*.py"))
        peers = {"ruff": ruff} | ({"TorchFix": torchfix(args.folder)} if name in TORCHFIX_ON else {})
        said = judge(run, source)
        noisy = name in LIBRARIES and (said["errors"] > 0 or said["warnings"] * 100 > said["files"])
        failed |= noisy or said["not_read"] > 0
        cost = measure(run, source, args.rounds, peers)
        results[name] = {"version": release, "lines": lines, **said, **{k: round(v, 3) for k, v in cost.items()}}
        row = [name, release, said["files"], lines // 1000, said["errors"], said["warnings"], said["not_read"]]
        row += [f"{cost['cold']:.2f}", f"{cost['warm']:.2f}", f"{cost['cold'] / cost['ast.parse']:.2f}", said["memory"]]
        row += [f"{cost[p]:.2f} ({cost[p] / cost['cold']:.2f})" if p in cost else "-" for p in ("ruff", "TorchFix")]
        print(SHAPE.format(*row), flush=True)
    alone = single_files(run, args.rounds, args.folder)
    print("\none file of 1,000 lines, CPU seconds: " + ", ".join(f"{k} {v:.3f}" for k, v in alone.items()))
    print(f"goals on a quiet machine, CPU seconds: {GOALS}; {MEMORY_GOAL} MiB")
    if args.write:
        kept = {"machine": described, "libraries": results, "one file": {k: round(v, 3) for k, v in alone.items()}}
        path = ROOT / "benchmarks" / "results" / f"check-{described['date']}.json"
        path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
