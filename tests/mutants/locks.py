"""Locks of programs and of their mutants, and what a lock says of a dtype that plain inspection saw lowered.

    python locks.py < programs.json > locks.json             # the lock of each of these programs, in a fresh Python
    python -m mutants.locks --sample 200 --seed 3 > survey   # which mutants break the lock of their program, and how

What a mutant lowered is read off plain runs by `recorder.py`, without precaudit: weights, gradients, optimizer state
by slot, the loss, and what the program's names held at its end.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mutants import engine, operators

LOW = ("bfloat16", "float16")


def lock(program: engine.Program) -> dict[str, Any]:
    """`text` of the program's lock, the `error` that ended the program, and `told`: the roles of its findings."""

    def work() -> dict[str, object]:
        import harness

        from precaudit.contracts import lockfile
        from precaudit.contracts.precision import of_report

        ran = harness.run(path, traced=True)
        assert ran.report is not None
        told = sorted({f"{f.rule} {f.role} {f.dtype}" for f in ran.report.findings if f.severity.value != "note"})
        return {"text": lockfile.write(of_report(ran.report)), "error": ran.error, "told": told}

    with engine._folder() as folder:
        path = program.write(folder)
        made: dict[str, object] = engine.in_a_fork(work)
    return made if "text" in made else {"text": "", "error": str(made.get("crash")), "told": []}


def drift(before: str, after: str) -> list[str]:
    """The sentences with which the second lock differs from the first."""
    import tomllib

    from precaudit.contracts import lockfile
    from precaudit.contracts.drift import compare

    held = [lockfile._checked(Path("precision.lock"), tomllib.loads(text)) for text in (before, after)]
    return [str(change) for change in compare(*held).changes]


def lowered(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what, dtype) that a plain run of the mutant held in low precision and one of the program did not."""
    was, now = set(_held(before)), set(_held(after))
    return sorted(one for one in now - was if one[1] in LOW)


def _held(ran: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield from (tuple(one.rsplit(" ", 1)) for one in ran["dtypes"])  # type: ignore[misc]
    yield from (("loss", root.split()[0]) for root in ran["losses"])
    for name, tensors in ran["left"].items():
        yield from ((f"left in {name}", one.split()[0]) for one in tensors)


def unnamed(what: list[tuple[str, str]], changes: list[str]) -> list[str]:
    """Which of these no sentence of a drift names, with the dtype that they have now."""
    return [
        f"{name} {dtype}"
        for name, dtype in what
        if not name.startswith("left in ")
        and not any(
            name in change.partition(" was ")[0] and dtype in change.partition(", is ")[2] for change in changes
        )
    ]


def survey(sample: int, seed: int, only: str) -> None:
    """One JSON line for each mutant: what was lowered, what its lock says, what of it is not named."""
    from mutants.matrix import chosen_mutants

    programs = [program for program in engine.programs().values() if program.runnable]
    ways = [way for way in operators.load().values() if only in way.family or only in way.name]
    parents: dict[str, tuple[Any, Any]] = {}
    for mutant, operator in chosen_mutants(programs, ways, sample, seed):
        name = mutant.program.name
        if name not in parents:
            parents[name] = engine.measured(mutant.program), lock(mutant.program)
        plain, mine = parents[name]
        ran, theirs = engine.measured(mutant.broken), lock(mutant.broken)
        row: dict[str, Any] = {"mutant": mutant.name, "family": operator.family}
        if "crash" in ran or ran["error"] or theirs["error"]:
            row["ended"] = str(ran.get("crash") or ran["error"] or theirs["error"])[:120]
        else:
            changes = drift(mine["text"], theirs["text"])
            what = lowered(plain, ran)
            row |= {"lowered": what, "drift": changes, "unnamed": unnamed(what, changes)}
            row["told"] = sorted(set(theirs["told"]) - set(mine["told"]))
        print(json.dumps(row), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sample", type=int, help="so many mutants, chosen by the seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="operators whose name or family contains this")
    chosen = parser.parse_args()
    engine.warm()
    if chosen.sample:
        survey(chosen.sample, chosen.seed, chosen.only)
        return
    for name, files in json.load(sys.stdin).items():
        print(json.dumps([name, lock(engine.Program(name, files))]), flush=True)


if __name__ == "__main__":
    main()
