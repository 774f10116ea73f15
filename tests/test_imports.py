"""Which part of precaudit may know which: the direction of imports, and what a start does not pay for."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "precaudit"

FRONT = {"api", "cli", "commands", "integrations", "run", "__main__"}
"""What a user meets; it may use everything, and nothing may use it."""

MAY_USE: dict[str, set[str]] = {
    "errors": set(),
    "disk": set(),
    "foreign": set(),
    "patterns": set(),
    "git": set(),
    "model": set(),
    "notebook": {"foreign"},
    "shipped": {"errors"},
    "rulebook": {"disk", "foreign", "errors", "model", "shipped"},
    "judge": {"errors", "model", "rulebook"},
    "settings": {"disk", "foreign", "errors", "model", "rulebook"},
    "allowed": {"disk", "errors", "foreign", "model", "rulebook", "settings", "shipped"},
    "baseline": {"disk", "foreign", "errors", "model", "notebook", "rulebook", "settings"},
    "suppressions": {"errors", "model", "rulebook", "settings"},
    "checkpoint": {"disk", "foreign", "errors", "model"},
    "silence": {"disk", "model", "patterns", "rulebook", "suppressions"},
    "static": {
        "allowed", "disk", "errors", "foreign", "judge", "model", "notebook", "patterns", "rulebook", "settings",
        "shipped", "silence", "suppressions",
    },
    "launch": {
        "allowed", "disk", "foreign", "git", "errors", "judge", "model", "rulebook", "settings", "silence",
        "suppressions",
    },
    "contracts": {"disk", "errors", "foreign", "judge", "launch", "model", "rulebook"},
    "report": {"disk", "errors", "judge", "model", "notebook", "rulebook", "settings"},
    "runtime": {"model"},
    "preflight": {"runtime"},
}  # fmt: skip
"""Part -> the other parts it may import."""

OWNERS = {
    "torch": {"api", "runtime", "preflight", "integrations"},
    "libcst": {"static"},
    "rich": {"report"},
    "click": {"cli", "commands"},
}
"""Library -> the only parts that import it."""


def sources() -> Iterator[tuple[str, Path]]:
    for path in sorted(ROOT.rglob("*.py")):
        yield path.relative_to(ROOT).parts[0].removesuffix(".py"), path


def imported(path: Path) -> Iterator[str]:
    """The dotted names a file imports, relative ones resolved, `if TYPE_CHECKING` included."""
    package = ["precaudit", *path.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            front = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*front, *([node.module] if node.module else [])])
            yield from (f"{module}.{name.name}" for name in node.names)


def test_each_part_imports_only_the_parts_below_it() -> None:
    wrong = []
    for part, path in sources():
        if part in FRONT or part == "__init__":
            continue
        assert part in MAY_USE, f"{part} has no row in MAY_USE: say what it may import"
        used = {name.split(".")[1] for name in imported(path) if name.startswith("precaudit.")} - {"__version__", part}
        wrong += [f"{path.relative_to(ROOT)} imports precaudit.{other}" for other in sorted(used - MAY_USE[part])]
    assert wrong == []


WORDS = [["precaudit", "model", name] for name in ("vocabulary", "evidence", "frameworks")]
"""What the runtime uses of the model; `launch/bootstrap.py` takes these files along."""


def test_the_runtime_uses_torch_the_standard_library_and_the_vocabulary_only() -> None:
    wrong = []
    for part, path in sources():
        if part != "runtime":
            continue
        for name in imported(path):
            words = name.split(".")
            fine = words[0] in {"torch", *sys.stdlib_module_names} or words[:2] == ["precaudit", "runtime"]
            if not fine and words[:3] not in WORDS:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert wrong == []


RUNTIME = ROOT / "runtime"
BASE = {
    "dtypes", "events", "guard", "imports", "modes", "observation", "operands", "operations", "optable", "parts",
    "patching", "process.ledger", "recorder", "settings", "sites", "torch_private",
}  # fmt: skip
"""Files of the runtime that know of no tap, tracker or watcher; they use each other only."""
MAY_KNOW: dict[str, set[str]] = {
    "taps": {"taps"},
    "trackers": {"trackers"},
    "watchers": {"watchers", "trackers"},
    "frameworks": {"frameworks", "trackers"},
    "exact": {"exact", "trackers"},
    "process": {"process", "trackers", "exact"},
    "session": {"exact", "taps", "trackers", "watchers", "frameworks", "process"},
}
"""Folder of the runtime -> the folders it may import beside BASE: watchers -> trackers -> events <- taps."""


def runtime_imports() -> dict[str, set[str]]:
    """File of the runtime -> the others it imports, `if TYPE_CHECKING` included; "taps.ops", "session"."""
    paths = {path for path in RUNTIME.rglob("*.py") if path.name != "sitecustomize.py"}
    names = {
        ".".join(path.relative_to(RUNTIME).with_suffix("").parts).removesuffix(".__init__"): path for path in paths
    }
    found: dict[str, set[str]] = {}
    for one, path in names.items():
        inside = [name.removeprefix("precaudit.runtime.") for name in imported(path)]
        files = {next((n for n in (name, name.rpartition(".")[0]) if n in names), "") for name in inside}
        found[one] = files - {"", one}
    return found


def folder(name: str) -> str:
    return "base" if name in BASE else name.partition(".")[0]


def test_a_watcher_knows_trackers_a_tracker_knows_events_and_a_tap_knows_nobody() -> None:
    wrong = []
    for one, others in runtime_imports().items():
        if one == "__init__":
            continue
        allowed = {"base"} | MAY_KNOW.get(folder(one), set())
        wrong += [f"{one} imports {other}" for other in sorted(others) if folder(other) not in allowed]
    assert wrong == []


def circles(imports: dict[str, set[str]]) -> set[str]:
    """The files that can be reached from themselves."""
    found = set()
    for start in imports:
        seen: set[str] = set()
        waiting = list(imports[start])
        while waiting:
            one = waiting.pop()
            if one not in seen:
                seen.add(one)
                waiting += imports.get(one, ())
        if start in seen:
            found.add(start)
    return found


def test_no_files_of_the_runtime_import_each_other_in_a_circle() -> None:
    assert sorted(circles(runtime_imports())) == []


LONGEST, MOST_BRANCHES = 60, 15


def branches(function: ast.AST) -> int:
    """The ifs, loops and handlers of a function, those of functions inside it left out."""
    inner = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    kinds = (ast.If, ast.For, ast.While, ast.ExceptHandler, ast.IfExp, ast.Match)
    waiting, found = list(ast.iter_child_nodes(function)), 0
    while waiting:
        node = waiting.pop()
        if not isinstance(node, inner):
            found += isinstance(node, kinds)
            waiting += ast.iter_child_nodes(node)
    return found


def test_no_function_of_the_runtime_is_too_long_to_be_read_at_once() -> None:
    wrong = []
    for path in sorted(RUNTIME.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines, forks = (node.end_lineno or 0) - node.lineno + 1, branches(node)
                if lines > LONGEST or forks > MOST_BRANCHES:
                    wrong.append(f"{path.relative_to(RUNTIME)}: {node.name}: {lines} lines, {forks} branches")
    assert wrong == []


def test_nothing_is_told_under_a_tuple_that_begins_with_a_word() -> None:
    """Two files that agree on a word are a protocol nobody declared: a key begins with a class, or is a NamedTuple."""
    wrong = []
    for path in sorted(RUNTIME.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            told = node.func if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else None
            if told is None or told.attr not in ("once", "put", "get", "renew") or "ledger" not in ast.unparse(told):
                continue
            key = node.args[0]
            if isinstance(key, ast.Tuple) and isinstance(key.elts[0], ast.Constant):
                wrong.append(f"{path.relative_to(RUNTIME)}: {ast.unparse(key)}")
    assert wrong == []


def test_a_library_is_imported_only_by_the_part_that_owns_it() -> None:
    wrong = []
    for part, path in sources():
        for name in imported(path):
            library = name.split(".")[0]
            if part not in OWNERS.get(library, {part}):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert wrong == []


def test_only_the_terminal_imports_rich() -> None:
    users = {path.name for _, path in sources() if any(name.split(".")[0] == "rich" for name in imported(path))}
    assert users <= {"terminal.py"}


def loaded_by(*words: str) -> set[str]:
    """The top-level modules in a process that has run `precaudit` with these words."""
    program = (
        "import sys, contextlib, io\nfrom precaudit.cli import run\n"
        "with contextlib.redirect_stdout(io.StringIO()): run(sys.argv[1:])\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_version_imports_nothing_heavy() -> None:
    assert loaded_by("--version") & {"torch", "libcst", "rich", "pydantic"} == set()


@pytest.mark.parametrize(
    "words",
    [("check", "rules"), ("checkpoint", "fixtures"), ("report",), ("rules",), ("rules", "PA301"), ("doctor",)],
    ids=" ".join,
)
def test_only_the_traced_process_imports_torch(words: tuple[str, ...]) -> None:
    assert "torch" not in loaded_by(*words)
