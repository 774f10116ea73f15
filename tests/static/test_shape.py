"""The shape of the static pass: which part may know which, how long a function may be, and what a new rule needs."""

from __future__ import annotations

import ast
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import precaudit
from precaudit.static import detectors, overlays
from precaudit.static.analyze import analyze
from precaudit.static.source import Source
from tests.test_imports import LONGEST, MOST_BRANCHES, branches, circles, imported

STATIC = Path(precaudit.__file__).parent / "static"
FILES = {
    ".".join(p.relative_to(STATIC).with_suffix("").parts).removesuffix(".__init__"): p for p in STATIC.rglob("*.py")
}
NOT_ABOVE = {
    "language": {"overlays", "detectors", "files", "findings", "analyze"},
    "overlays": {"detectors", "findings", "analyze"},
    "detectors": {"files", "findings", "analyze"},
    "reach": {"language", "overlays", "detectors", "files", "findings", "analyze", "source", "nodes"},
}
"""Folder -> what it may not import: detectors -> overlays -> language, and `reach` reads text alone."""


def imports() -> dict[str, set[str]]:
    """File of the static pass -> the others that it imports, `if TYPE_CHECKING` included."""
    found = {}
    for one, path in FILES.items():
        inside = [name.removeprefix("precaudit.static.") for name in imported(path)]
        found[one] = {next((n for n in (name, name.rpartition(".")[0]) if n in FILES), "") for name in inside} - {
            "",
            one,
        }
    return found


def test_detectors_know_overlays_and_overlays_know_the_language_and_never_the_other_way() -> None:
    wrong = [
        f"{one} imports {other}"
        for one, others in imports().items()
        for other in sorted(others)
        if other.partition(".")[0] in NOT_ABOVE.get(one.partition(".")[0], ())
    ]
    assert wrong == []


def test_no_files_import_each_other_in_a_circle_outside_of_the_language() -> None:
    """Typing imports included."""
    assert {name for name in circles(imports()) if name.partition(".")[0] != "language"} == set()


def test_what_torch_means_makes_no_fact_a_detector_does() -> None:
    wrong = [
        name
        for name, path in FILES.items()
        if name.startswith("overlays.torch.") and "facts.add(" in path.read_text(encoding="utf-8")
    ]
    assert wrong == []


def test_no_function_is_too_long_to_be_read_at_once() -> None:
    wrong = set()
    for name, path in FILES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > LONGEST or branches(node) > MOST_BRANCHES:
                    wrong.add(f"{name}: {node.name}")
    assert sorted(wrong) == []


DETECTOR = """
from precaudit.model.vocabulary import Kind


def listen(bus):
    bus.on("frobnicate", lambda op: op.run.facts.add(Kind.CALL, op.spot, "", None, None, api="frobnicate"), False)
"""
OVERLAY = """
from precaudit.static.overlays.torch import ops


def frobnicate(run, name, args, kwargs, node):
    return ops.apply(run, "frobnicate", args, kwargs, node)


CALLS = {"brandnew.frobnicate": frobnicate}
"""
SCRIPT = "import torch, brandnew\ny = brandnew.frobnicate(torch.ones(3, dtype=torch.float16))\n"


@pytest.fixture
def added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A detector and an overlay that stand in folders of their own."""
    for package, name, text in ((detectors, "of_brandnew", DETECTOR), (overlays, "brandnew", OVERLAY)):
        folder = tmp_path / package.__name__
        folder.mkdir()
        (folder / f"{name}.py").write_text(text)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    overlays.forget()
    detectors.found.cache_clear()
    yield
    monkeypatch.undo()
    overlays.forget()
    detectors.found.cache_clear()


@pytest.mark.usefixtures("added")
def test_a_detector_and_an_overlay_are_found_by_standing_in_their_folders() -> None:
    facts, _ = analyze(Source("x.py", SCRIPT))
    assert [(fact.attrs["api"], fact.site.line if fact.site else 0) for fact in facts] == [("frobnicate", 2)]


def patterns() -> dict[str, re.Pattern[str]]:
    """Where it stands -> each regular expression that a file of the static pass compiles from one literal."""
    found = {}
    for name, path in FILES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or ast.unparse(node.func) != "re.compile" or not node.args:
                continue
            if isinstance(node.args[0], ast.Constant):
                raw = node.args[0].value
                text = raw.decode() if isinstance(raw, bytes) else raw
                flags = re.MULTILINE if "MULTILINE" in ast.unparse(node) else 0
                found[f"{name}:{node.lineno}"] = re.compile(
                    text, flags | (re.DOTALL if "DOTALL" in ast.unparse(node) else 0)
                )
    return found


PATTERNS = patterns()
PIECES = (
    " ", "\t", "a", "a.", "a = ", "(", ")", "[", "'", '"', "#", "\\", "x(", "= ", "from a import b, ", "if ", "@", "*",
    "lambda ", "a, ", "a[", ".half", "not in (", "1", "\n", "\n ", '"""', "a: ", "{", "for a in ", "with a as b, ",
)  # fmt: skip
"""What a text may repeat on which a pattern that tries again at each place never ends."""
SHORT, LONG = 4_000, 16_000
"""Repeats of a piece; four times the text may take eight times as long, not sixteen."""


def seconds(pattern: re.Pattern[str], text: str) -> float:
    best = float("inf")
    for _ in range(2):
        start = time.process_time()
        for _ in pattern.finditer(text):
            pass
        best = min(best, time.process_time() - start)
    return best


@pytest.mark.parametrize("place", PATTERNS)
def test_a_pattern_takes_time_in_proportion_to_the_text(place: str) -> None:
    slow = []
    for piece in PIECES:
        long = seconds(PATTERNS[place], piece * LONG)
        if long > 0.05 and long > 8 * seconds(PATTERNS[place], piece * SHORT):
            slow.append(piece)
    assert slow == []
