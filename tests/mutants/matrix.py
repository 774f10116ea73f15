"""Runs operators on programs, remembers what came out, and prints operator against program for each witness.

    python -m mutants.matrix --sample 200 --seed 1        # a slice
    python -m mutants.matrix                              # all that is not in the store yet
    python -m mutants.matrix --only loss-cast --program gan --verbose
    python -m mutants.matrix --harmless                   # what must change no verdict
    python -m mutants.matrix --report                     # what the store knows, as Markdown

A mutant's measurement is kept under the hash of its text, a verdict under that and the hash of precaudit's own files:
what is run again after a change is only what the change can touch.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import random
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mutants import engine, operators
from mutants.engine import WITNESSES, Mutant, Program
from mutants.operators import Operator

ROOT = Path(__file__).resolve().parents[2]
STORE = Path(tempfile.gettempdir()) / "precaudit-mutants.jsonl"
THROWN_OUT = ("invalid", "equivalent")
GOOD = ("located", "found")
COLUMNS = ("found", "located", "noted", "missed", "false")


@dataclass(frozen=True)
class Row:
    """What is known of one mutant."""

    program: str
    operator: str
    family: str
    place: int
    damage: tuple[str, ...]
    """In which aspects the plain run differs from the parent's; `invalid` where it cannot be run."""
    verdicts: Mapping[str, Mapping[str, Any]]
    """Witness -> its verdict; only witnesses that can see what was broken."""

    @property
    def counted(self) -> bool:
        return not set(self.damage) & set(THROWN_OUT)

    @property
    def name(self) -> str:
        return f"{self.program} {self.operator} {self.place}"


class Store:
    """What earlier runs found, one JSON line each, appended as it comes: a run that is stopped goes on where it was."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[str, Any] = {}
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    entry = json.loads(line)
                except ValueError:  # the line that a run was stopped in
                    continue
                self.known[entry["key"]] = entry["value"]

    def get(self, key: str, make: Any) -> Any:
        """What is known under a key, made and kept where nothing is."""
        if key not in self.known:
            self.known[key] = make()
            with self.path.open("a") as lines:
                lines.write(json.dumps({"key": key, "value": self.known[key]}) + "\n")
        return self.known[key]


@functools.cache
def tool() -> str:
    """A hash over precaudit's code and rules."""
    found = hashlib.sha256()
    for folder, pattern in (("precaudit", "*.py"), ("precaudit", "*.toml"), ("rules", "*.toml")):
        for path in sorted((ROOT / folder).rglob(pattern)):
            found.update(path.read_bytes())
    return found.hexdigest()[:12]


@functools.cache
def ruler() -> str:
    """A hash over what measures plain runs."""
    return hashlib.sha256((Path(engine.__file__).parent / "recorder.py").read_bytes()).hexdigest()[:8]


@functools.cache
def seen_by() -> dict[str, tuple[str, ...]]:
    """Rule id -> the witnesses that can report it."""
    from precaudit import rulebook

    return {rule.id: tuple(rule.seen_by) for rule in rulebook.load().rules.values()}


def examine(mutant: Mutant, operator: Operator, store: Store) -> Row:
    """Measures a mutant, and asks every witness that can see it, where the damage is real."""
    damage = _damage(mutant, operator, store)
    row = Row(mutant.program.name, operator.name, operator.family, mutant.place, damage, {})
    if not row.counted:
        return row
    verdicts = {}
    for witness in engine.visible(operator, seen_by()):
        answer = _answer(mutant.broken, witness, store)
        said = answer if isinstance(answer, str) else [engine.Said(**raw) for raw in answer]
        verdicts[witness] = vars(engine.verdict(mutant, operator, said))
    return replace(row, verdicts=verdicts)


def _measure(program: Program, store: Store) -> Any:
    return store.get(f"run {program.digest} {ruler()}", lambda: engine.measured(program))


def _answer(program: Program, witness: str, store: Store) -> Any:
    def ask() -> Any:
        said = engine.ASK[witness](program)
        return said if isinstance(said, str) else [vars(s) for s in said]

    return store.get(f"{witness} {program.digest} {tool()}", ask)


def _damage(mutant: Mutant, operator: Operator, store: Store) -> tuple[str, ...]:
    before, after = _measure(mutant.program, store), _measure(mutant.broken, store)
    if "crash" in after or (after["error"] and not (operator.raises and re.search(operator.raises, after["error"]))):
        return ("invalid",)
    from mutants.recorder import Recording

    damage = tuple(Recording(**after).differs(before))
    return damage if damage and (not operator.shows or set(damage) & set(operator.shows)) else ("equivalent",)


def chosen_mutants(
    programs: Iterable[Program], ways: Iterable[Operator], sample: int | None, seed: int
) -> list[tuple[Mutant, Operator]]:
    """All mutants, or so many: pairs of operator and program, one place of each; in an order drawn by the seed."""
    pairs = [(p, o) for p in programs for o in ways]
    drawn = random.Random(seed)
    drawn.shuffle(pairs)
    if sample is None:
        every = [(m, o) for p, o in pairs for m in engine.mutants(p, o)]
        drawn.shuffle(every)
        return every
    found: list[tuple[Mutant, Operator]] = []
    for program, operator in pairs:
        if len(found) == sample:
            break
        if places := engine.mutants(program, operator):
            found.append((drawn.choice(places), operator))
    return found


def run(work: Sequence[tuple[Mutant, Operator]], store: Store, jobs: int) -> None:
    """Examines all of these, in several processes that share the store's file."""
    children = []
    for job in range(jobs):
        pid = os.fork()
        if pid == 0:
            try:
                for number, (mutant, operator) in enumerate(work[job::jobs]):
                    row = examine(mutant, operator, store)
                    if number % 10 == 0:
                        print(f"{number * jobs} of {len(work)} {row.name}", file=sys.stderr)
            finally:
                os._exit(0)
        children.append(pid)
    for pid in children:
        os.waitpid(pid, 0)


# -- what is printed


def summary(rows: Sequence[Row]) -> Iterator[str]:
    """The counts by family and by witness, as a Markdown table."""
    counted = [row for row in rows if row.counted]
    thrown = {word: sum(word in row.damage for row in rows) for word in THROWN_OUT}
    ran, same = thrown["invalid"], thrown["equivalent"]
    yield f"{len(rows)} mutants: {len(counted)} counted, {ran} cannot be run, {same} change nothing."
    yield ""
    columns = [f"{witness}: {word}" if word == "found" else word for witness in WITNESSES for word in COLUMNS]
    yield "| family | operators | mutants | " + " | ".join(columns) + " |"
    yield "|---" * (len(columns) + 3) + "|"
    for family in [*sorted({row.family for row in counted}), "all"]:
        mine = [row for row in counted if family in ("all", row.family)]
        cells = [family, str(len({row.operator for row in mine})), str(len(mine))]
        for witness in WITNESSES:
            cells += _cells(mine, witness)
        yield "| " + " | ".join(cells) + " |"


def _cells(rows: Sequence[Row], witness: str) -> list[str]:
    seen = [row.verdicts[witness] for row in rows if witness in row.verdicts]
    found = sum(v["outcome"] in GOOD for v in seen)
    share = f" ({100 * found / len(seen):.0f} %)" if seen else ""
    located = sum(v["outcome"] == "located" for v in seen)
    noted = sum(v["outcome"] == "noted" for v in seen)
    missed = sum(v["outcome"] in ("missed", "failed") for v in seen)
    return [
        f"{found} of {len(seen)}{share}",
        str(located),
        str(noted),
        str(missed),
        str(sum(bool(v["false"]) for v in seen)),
    ]


def matrix(rows: Sequence[Row], witness: str) -> Iterator[str]:
    """Operator against program: how many of the mutants there this witness found, `2/3`."""
    counted = [row for row in rows if row.counted and witness in row.verdicts]
    names = sorted({row.program for row in counted})
    yield "| operator | " + " | ".join(names) + " |"
    yield "|---" * (len(names) + 1) + "|"
    for operator in sorted({row.operator for row in counted}):
        cells = []
        for program in names:
            here = [row.verdicts[witness] for row in counted if (row.program, row.operator) == (program, operator)]
            cells.append(f"{sum(v['outcome'] in GOOD for v in here)}/{len(here)}" if here else "")
        yield f"| {operator} | " + " | ".join(cells) + " |"


def survivors(rows: Sequence[Row]) -> Iterator[str]:
    """What was missed, told low or told wrongly, one line each."""
    for row in sorted(rows, key=lambda r: (r.operator, r.program, r.place)):
        for witness, verdict in row.verdicts.items():
            if verdict["outcome"] not in GOOD:
                told = f"damage {','.join(row.damage)}; said {list(verdict['said'])}"
                yield f"{verdict['outcome']:8} {witness} {row.name}: {told}"
            elif verdict["outcome"] == "found":
                yield f"far      {witness} {row.name}: said {list(verdict['said'])}"
            if verdict["false"]:
                yield f"false    {witness} {row.name}: {list(verdict['false'])} of {list(verdict['said'])}"


def alarms(work: Sequence[tuple[Mutant, Operator]], store: Store) -> Iterator[str]:
    """What a witness says of clean programs and of what harmless operators made of them."""
    clean = {m.program.name: m.program for m, _ in work}
    for name, program in [*clean.items(), *((m.name, m.broken) for m, _ in work)]:
        ran = _measure(program, store)
        if "crash" in ran or ran["error"]:
            yield f"invalid  {name}: {ran.get('crash') or ran['error']}"
            continue
        for witness in WITNESSES:
            answer = _answer(program, witness, store)
            loud = answer if isinstance(answer, str) else [s for s in answer if s["severity"] in engine.LOUD]
            if loud:
                yield f"alarm    {witness} {name}: {loud}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sample", type=int, help="so many mutants, chosen by the seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="operators whose name or family contains this")
    parser.add_argument("--program", default="", help="programs whose name contains this")
    parser.add_argument("--store", type=Path, default=STORE)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--harmless", action="store_true", help="operators after which no verdict may change")
    parser.add_argument("--report", action="store_true", help="print the matrix too")
    parser.add_argument("--survivors", action="store_true", help="print what was missed or told wrongly")
    chosen = parser.parse_args()
    package = "mutants.harmless" if chosen.harmless else "mutants.operators"
    ways = [o for o in operators.load(package).values() if chosen.only in o.name or chosen.only in o.family]
    programs = [p for p in engine.programs().values() if chosen.program in p.name and p.runnable]
    work = chosen_mutants(programs, ways, chosen.sample, chosen.seed)
    engine.warm()
    print(f"{len(work)} mutants, precaudit {tool()}, measured by {ruler()}", file=sys.stderr)
    store = Store(chosen.store)
    if chosen.harmless:
        for line in alarms(work, store):
            print(line, flush=True)
        return
    run(work, store, chosen.jobs)
    store = Store(chosen.store)
    rows = [examine(mutant, operator, store) for mutant, operator in work]
    print("\n".join(summary(rows)))
    if chosen.report:
        for witness in WITNESSES:
            print(f"\n{witness}\n\n" + "\n".join(matrix(rows, witness)))
    if chosen.survivors:
        print("\n".join(survivors(rows)))


if __name__ == "__main__":
    main()
