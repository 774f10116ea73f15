"""Applies operators to programs, measures what they did, and asks both witnesses about the result."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import json
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mutants import operators as operators_
from mutants.patterns import Matcher, Shape, parsed, places
from mutants.roles import roles

HERE = Path(__file__).parent
NEAR = 3
"""A finding is located when it stands within so many lines of the mistake."""
LIMIT = 120
"""Seconds after which a run is given up."""
LOUD = ("error", "warning")
WITNESSES = ("check", "trace")


@dataclass(frozen=True)
class Program:
    """A clean training program: one script, or a folder whose `main.py` is run."""

    name: str
    files: Mapping[str, str]
    """Path in the program's folder -> text; `main.py` is the one that is run."""

    @cached_property
    def needs(self) -> tuple[str, ...]:
        """The packages that it needs beside torch, named on a line `# needs: transformers, peft`."""
        found = re.search(r"(?m)^# needs: (.*)$", self.files["main.py"])
        return tuple(re.split(r",\s*", found[1].strip())) if found else ()

    @property
    def runnable(self) -> bool:
        return all(importlib.util.find_spec(package) is not None for package in self.needs)

    @cached_property
    def matcher_roles(self) -> Mapping[str, frozenset[str]]:
        return roles(self.files.values())

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(dict(self.files), sort_keys=True).encode()).hexdigest()[:16]

    def write(self, folder: Path) -> Path:
        """Writes the files below a folder; the path of the script to run."""
        (folder / "pyproject.toml").write_text("")
        for name, text in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return folder / "main.py"


@dataclass(frozen=True)
class Mutant:
    """A program with one operator applied at one of the places that it offers."""

    program: Program
    operator: str
    place: int
    files: Mapping[str, str]

    @property
    def name(self) -> str:
        return f"{self.program.name} {self.operator} {self.place}"

    @property
    def broken(self) -> Program:
        return Program(self.program.name, self.files)

    def lines(self, near: str) -> dict[str, set[int]]:
        """File -> the lines at which a finding counts as located, apart from those within NEAR of them."""
        found: dict[str, set[int]] = {}
        for name, text in self.files.items():
            before, after = self.program.files.get(name, "").splitlines(), text.splitlines()
            lines = set()
            for tag, _, _, start, end in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
                if tag != "equal":
                    lines |= set(range(start + 1, end + 1)) or {start, start + 1}
            if near:
                lines |= {number for number, line in enumerate(after, 1) if re.search(near, line)}
            found[name] = lines
        return found


@dataclass(frozen=True)
class Said:
    """What a witness said of one program."""

    rule: str
    severity: str
    file: str
    line: int
    message: str


def programs() -> dict[str, Program]:
    """Every clean program by its name."""
    found = {}
    for path in sorted((HERE / "programs").iterdir()):
        if path.is_dir() and (path / "main.py").is_file():
            files = {str(p.relative_to(path)): p.read_text() for p in sorted(path.rglob("*.py"))}
            found[path.name] = Program(path.name, files)
        elif path.suffix == ".py":
            found[path.stem] = Program(path.stem, {"main.py": path.read_text()})
    return found


def mutants(program: Program, operator: operators_.Operator) -> list[Mutant]:
    """Every mutant that an operator makes of a program, each text once, apart from those that Python cannot compile."""
    found: dict[str, Mutant] = {}
    for files in _applied(program, operator):
        if files != dict(program.files) and all(_compiles(text) for text in files.values()):
            found.setdefault(json.dumps(files), Mutant(program, operator.name, len(found), files))
    return list(found.values())


def _applied(program: Program, operator: operators_.Operator) -> Iterator[dict[str, str]]:
    """The files after the operator, once for each place where its first edit fits."""
    if operator.transform is not None:
        yield from (dict(files) for files in operator.transform(program.files))
        return
    first, *rest = operator.edits
    if first.everywhere:
        rest = [first, *rest]
    matcher = Matcher(program.matcher_roles, operator.names)
    for name, text in program.files.items():
        module, put = parsed(text), Shape(first.put)
        for place in places(module, Shape(first.find), put, matcher, {}):
            files = {**program.files, name: place.rewritten(module, put).code}
            for edit in rest:
                files = _edited(files, edit, matcher, place.bound, name)
            yield files


def _compiles(text: str) -> bool:
    try:
        compile(text, "<mutant>", "exec", dont_inherit=True)
    except SyntaxError:
        return False
    return True


def _edited(
    files: Mapping[str, str], edit: operators_.Edit, matcher: Matcher, bound: Any, first: str
) -> dict[str, str]:
    """The files after one more edit: at its first place, in the file of the first edit before others, or everywhere.

    A place that an edit made is not edited again.
    """
    changed = dict(files)
    find, put = Shape(edit.find), Shape(edit.put)
    for name in sorted(files, key=lambda n: n != first):
        nth = 0
        while True:
            module = parsed(changed[name])
            found = list(places(module, find, put, matcher, bound))
            if nth >= len(found):
                break
            changed[name] = found[nth].rewritten(module, put).code
            if not edit.everywhere:
                return changed
            after = list(places(parsed(changed[name]), find, put, matcher, bound))
            nth += 1 if len(after) == len(found) else 0
    return changed


def in_a_fork(work: Callable[[], Any], seconds: int = LIMIT) -> Any:
    """What `work` returns in a forked process, by way of JSON; `{"crash": why}` where it gave nothing."""
    with tempfile.NamedTemporaryFile("r", suffix=".json") as answer:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                signal.alarm(seconds)
                _silent()
                Path(answer.name).write_text(json.dumps(work()))
                code = 0
            except BaseException as error:
                Path(answer.name).write_text(json.dumps({"crash": repr(error)[:500]}))
            finally:
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        try:
            return json.loads(Path(answer.name).read_text())
        except ValueError:
            return {"crash": f"ended with status {status}"}


def _silent() -> None:
    """Sends what the process writes below Python's level to nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


def measured(program: Program) -> dict[str, Any]:
    """The recording of a plain run, as a mapping."""
    from mutants.recorder import record

    with _folder() as folder:
        path = program.write(folder)
        return dict(in_a_fork(lambda: asdict(record(path))))


def checked(program: Program) -> list[Said] | str:
    """What `precaudit check` says of the program's folder; a string where it failed."""

    def work() -> Any:
        from precaudit import rulebook
        from precaudit.judge import judge
        from precaudit.model.vocabulary import fact_from_json
        from precaudit.static.files.cache import Cache
        from precaudit.static.files.discovery import Excluder, discover
        from precaudit.static.files.run import examine_all

        found = discover([str(folder)], Excluder(folder, (), False)).found
        results = [result for _, result in examine_all(found, Cache(None), jobs=1)]
        facts = [fact_from_json(raw) for result in results for raw in result.get("facts", ())]
        errors = [result["error"] for result in results if "error" in result]
        return errors or [_said(f, folder) for f in judge(facts, rulebook.load(), "check")]

    with _folder() as folder:
        program.write(folder)
        return _sayings(in_a_fork(work))


def traced(program: Program) -> list[Said] | str:
    """What a trace of the program says; a string where it failed or saw no step."""

    def work() -> Any:
        import harness

        outcome = harness.run(path, traced=True)
        assert outcome.report is not None
        if not outcome.report.coverage.traced_steps and not outcome.error and not outcome.report.findings:
            return {"crash": "no step was traced"}
        return [_said(f, folder) for f in outcome.report.findings]

    with _folder() as folder:
        path = program.write(folder)
        return _sayings(in_a_fork(work))


ASK: Mapping[str, Callable[[Program], list[Said] | str]] = {"check": checked, "trace": traced}


class _folder:
    """A folder of its own for one run, gone afterwards."""

    def __enter__(self) -> Path:
        self.path = Path(tempfile.mkdtemp(prefix="mutant-")).resolve()
        return self.path

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def _said(finding: Any, folder: Path) -> dict[str, Any]:
    path = finding.path or ""
    path = os.path.relpath(folder / path, folder) if path else ""
    severity = str(getattr(finding.severity, "value", finding.severity))
    return asdict(Said(finding.rule, severity, path, finding.line or 0, finding.message))


def _sayings(answer: Any) -> list[Said] | str:
    if isinstance(answer, dict):
        return str(answer.get("crash"))
    if answer and isinstance(answer[0], str):
        return str(answer[0])
    return [Said(**raw) for raw in answer]


@dataclass(frozen=True)
class Verdict:
    """How one witness did on one mutant: `found`, `located`, `noted`, `missed` or `failed`, and rules told wrongly."""

    outcome: str
    false: tuple[str, ...]
    said: tuple[str, ...]


def verdict(mutant: Mutant, operator: operators_.Operator, answer: list[Said] | str) -> Verdict:
    """Holds what a witness said against what the operator broke."""
    if isinstance(answer, str):
        return Verdict("failed", (), (answer,))
    lines = mutant.lines(operator.near)
    loud = [s for s in answer if s.severity in LOUD]
    mine = [s for s in loud if s.rule in operator.breaks]
    said = tuple(f"{s.rule} {s.severity} {s.file}:{s.line}" for s in answer)
    strange = {s.rule for s in loud} - set(operator.breaks) - set(operator.beside)
    outcome = "missed"
    if any(_near(s, lines) for s in mine):
        outcome = "located"
    elif mine:
        outcome = "found"
    elif any(s.rule in operator.breaks for s in answer):
        outcome = "noted"
    return Verdict(outcome, tuple(sorted(strange)), said)


def _near(said: Said, lines: Mapping[str, set[int]]) -> bool:
    return any(abs(said.line - at) <= NEAR for at in lines.get(said.file, ()))


def visible(operator: operators_.Operator, seen_by: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    """The witnesses that can see what an operator breaks, by the rules and by what the operator says of itself."""
    for witness in WITNESSES:
        if witness in operator.witnesses and any(witness in seen_by[rule] for rule in operator.breaks):
            yield witness


def warm() -> None:
    """Imports in this process what every forked run would import for itself: seconds each time."""
    import torch

    for module in ("harness", "mutants.recorder", "precaudit.runtime.session", "precaudit.static.analyze"):
        importlib.import_module(module)
    from precaudit import rulebook

    torch.set_num_threads(1)
    rulebook.load()
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    with torch.random.fork_rng():
        torch.nn.functional.mse_loss(model(torch.ones(1, 2)), torch.ones(1, 2)).backward()
    optimizer.step()
