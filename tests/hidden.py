"""Takes each private name of torch that precaudit uses away, one at a time, and traces a program without it.

    python tests/hidden.py PROGRAM      one line of JSON for each name: {"name": …, "refused": …} or what the trace did

torch is imported once; each name is taken from a process of its own, which then imports precaudit.
"""

from __future__ import annotations

import ast
import json
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def names() -> list[str]:
    """Every private name of torch in runtime/torch_private.py: "_C._storage_address"."""
    tree = ast.parse((ROOT / "precaudit" / "runtime" / "torch_private.py").read_text(encoding="utf-8"))
    found = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return sorted(
        name.removeprefix("torch.")
        for name in found
        if name.startswith("torch.") and name.rpartition(".")[2].startswith("_") and not name.endswith(("__", "._C"))
    )


def without(name: str, program: Path) -> dict[str, Any]:
    """What becomes of the program under the trace where torch has no such name."""
    import torch

    owner: Any = torch
    *front, last = name.split(".")
    for part in front:
        owner = getattr(owner, part)
    holders = [owner, *(base for base in getattr(owner, "__mro__", ())[1:])]
    try:
        delattr(next(holder for holder in holders if last in vars(holder)), last)
    except (StopIteration, TypeError) as error:  # a class of C++
        return {"name": name, "stays": str(error)}
    try:
        import harness
    except ImportError as error:
        return {"name": name, "refused": str(error)}
    try:
        plain = harness.run(program)
    except NameError as error:
        return {"name": name, "stays": f"torch itself needs it: {error}"}
    if plain.error:
        return {"name": name, "stays": f"torch itself needs it: {plain.error}"}
    traced = harness.run(program, traced=True)
    same = (plain.error, plain.stdout, plain.digest) == (traced.error, traced.stdout, traced.digest)
    report = traced.report
    notes = report.coverage.notes if report else []
    return {"name": name, "same": same, "error": str(traced.error or ""), "notes": notes}


def main() -> None:
    program = Path(sys.argv[1])
    import torch
    import torch._dynamo
    import torch.distributed

    torch.set_num_threads(1)
    for name in names():
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            try:
                told = without(name, program)
            except ImportError as error:
                told = {"name": name, "refused": str(error)}
            except Exception as error:
                told = {"name": name, "same": False, "error": repr(error), "notes": []}
            print(json.dumps(told), flush=True)
            os._exit(0)
        os.waitpid(child, 0)


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    main()
