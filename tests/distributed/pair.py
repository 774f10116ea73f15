"""Runs recipes in two real gloo processes (or one), each recipe plain and traced, and hands back what both ranks saw.

A recipe is a function of a module in this folder that trains a few steps; it returns its losses and what plain
inspection of the framework's own objects finds. One pair of processes serves many recipes, one after the other: the
trace of each is installed before and taken out after it, so that no trace sees another's tensors.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent.parent

Inspected = dict[str, set[str]]
"""Role -> the dtypes that plain inspection found."""


class Trained(NamedTuple):
    """What a recipe returns."""

    losses: list[float]
    inspected: Inspected
    weights: list[Any]
    """The rank's own tensors that training ended with, for the comparison bit by bit."""


@dataclass(frozen=True)
class Ran:
    """One recipe, both ranks together."""

    report: Any
    plain: list[Mapping[str, Any]]
    """By rank: losses and digest of the run without the trace."""
    traced: list[Mapping[str, Any]]
    inspected: list[Inspected]
    names: set[str]
    """What the trace calls the tensors that training ended with."""
    errors: list[str] = field(default_factory=list)

    def dtypes(self, role: str) -> set[str]:
        return {row.dtype for row in self.report.roles if row.role == role and row.dtype}

    def rules(self, *severities: str) -> set[str]:
        wanted = severities or ("error", "warning")
        return {f.rule for f in self.report.findings if f.severity.value in wanted}

    def finding(self, rule: str) -> Any:
        (found,) = [f for f in self.report.findings if f.rule == rule]
        return found


def run(
    module: str, recipes: Mapping[str, Mapping[str, Any]], timeout: float = 1500.0, world: int = 2
) -> dict[str, Ran]:
    """Every recipe, by its name: `{"function variant": {options}}`. Raises where a process fails to end."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder) / "wanted.json"
        wanted.write_text(json.dumps({"module": module, "recipes": recipes}))
        environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(HERE), str(HERE.parent), str(CHECKOUT)]))
        environment.update(OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu", WORLD_SIZE=str(world), CUDA_VISIBLE_DEVICES="")
        environment["PRECAUDIT_DISABLE"] = "1"
        # A build of an extension that is cut short leaves a lock on which every later run would wait for ever.
        environment["TORCH_EXTENSIONS_DIR"] = folder
        ranks = []
        for rank in range(world):
            mine = dict(environment, RANK=str(rank), LOCAL_RANK=str(rank))
            with open(Path(folder) / f"stderr-{rank}", "w") as said:  # a pipe that nobody reads would stop the other
                words = [sys.executable, __file__, str(wanted)]
                ranks.append(subprocess.Popen(words, env=mine, stdout=subprocess.DEVNULL, stderr=said))
        try:
            for one in ranks:
                one.wait(timeout=timeout)
        finally:
            for one in ranks:
                one.kill()
        results = []
        for number, one in enumerate(ranks):
            path = Path(folder) / f"rank-{number}.json"
            said = (Path(folder) / f"stderr-{number}").read_text()
            assert path.exists(), f"rank {number} ended with {one.returncode}: {said[-2000:]}"
            results.append(json.loads(path.read_text()))
    return {name: _together([result[name] for result in results]) for name in recipes}


def _together(ranks: Sequence[Mapping[str, Any]]) -> Ran:
    import harness

    errors = [rank["error"] for rank in ranks if "error" in rank]
    assert not errors, errors[0]
    return Ran(
        report=harness.judged_ranks([rank["file"] for rank in ranks]),
        plain=[rank["plain"] for rank in ranks],
        traced=[rank["traced"] for rank in ranks],
        inspected=[{role: set(dtypes) for role, dtypes in rank["inspected"].items()} for rank in ranks],
        names={name for rank in ranks for name in rank["names"]},
    )


# -- inside one rank


def _rank(wanted: Path) -> None:
    import torch
    import torch.distributed as dist

    from precaudit.runtime import session as sessions

    asked = json.loads(wanted.read_text())
    store = wanted.with_name("store").as_uri()
    rank = int(os.environ["RANK"])
    torch.set_num_threads(1)
    module = asked["module"]
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=int(os.environ["WORLD_SIZE"]))
    results: dict[str, Any] = {}
    for name, options in asked["recipes"].items():
        try:
            results[name] = _both(module, name.split()[0], options, sessions)
        except Exception:
            results[name] = {"error": f"{name}, rank {rank}: {traceback.format_exc()[-3000:]}"}
    path = wanted.with_name(f"rank-{rank}.json")
    path.with_suffix(".new").write_text(json.dumps(results))
    dist.barrier()
    path.with_suffix(".new").replace(path)
    dist.destroy_process_group()
    sys.stderr.flush()
    os._exit(0)


def _both(module: str, function: str, options: Mapping[str, Any], sessions: Any) -> dict[str, Any]:
    import harness
    import torch

    from precaudit.runtime.trackers.modules import Modules

    session = sessions.start({**harness.SETTINGS, "cwd": str(HERE)})
    harness.keep_modules(session)
    try:
        torch.manual_seed(0)
        recipe = getattr(importlib.import_module(module), function)
        traced = recipe(**options)
        file = session.rank_file.content()
        names = [session.parts.get(Modules).name(tensor) for tensor in traced.weights]
    finally:
        session.remove()
    torch.manual_seed(0)
    plain = recipe(**options)
    return {
        "file": json.loads(json.dumps(file)),
        "plain": _bits(plain),
        "traced": _bits(traced),
        "names": names,
        "inspected": {role: sorted(dtypes) for role, dtypes in traced.inspected.items()},
    }


def _bits(trained: Trained) -> dict[str, Any]:
    import hashlib

    import torch

    sha = hashlib.sha256()
    for tensor in trained.weights:
        own = tensor.detach().contiguous().flatten()
        sha.update(f"{own.dtype} {own.numel()}".encode())
        sha.update(own.view(torch.uint8).numpy().tobytes())
    return {"losses": [float(loss).hex() for loss in trained.losses], "digest": sha.hexdigest()}


if __name__ == "__main__":
    _rank(Path(sys.argv[1]))
