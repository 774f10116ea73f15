"""Examines files one by one or in several processes, and remembers what it found."""

from __future__ import annotations

import gc
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from precaudit.disk import read
from precaudit.errors import internal_error
from precaudit.static import named_files
from precaudit.static.files.cache import Cache, digest
from precaudit.static.files.discovery import CONFIGS, NOTEBOOK, Found
from precaudit.static.imports import imported, locate, origins
from precaudit.static.reach.relevance import leads_to
from precaudit.static.reach.words import has_ignores, has_literals, may_hold_a_finding, trains

CONFIG_WORDS = re.compile(rb"(?:fp|bf)16|float16|16-true|half|precaudit")
COMPILED_TO = 1_000_000
"""Bytes of all files up to which those that cannot hold a finding are compiled, so that a syntax error is told."""
COMPILED_ALONE_TO = 200_000
"""Bytes of one such file up to which it is: generated tables take 300 times their size."""
PARALLEL_FROM = 1_000_000
"""Bytes to parse from which several processes pay for their start."""
COLLECT_EVERY = 500_000
"""Bytes parsed between two collections of garbage; its cycles are all that would pile up."""
Result = dict[str, Any]
Task = tuple[Found, bytes]


def examine_all(
    found: Sequence[Found], cache: Cache, jobs: int = 0, limits: tuple[int, int] = (10, 512)
) -> list[tuple[Found, Result]]:
    """Each file with its result: `facts` and `suppressions` as JSON values, or `error`, one line.

    `limits` are the CPU seconds and the megabytes that one file may take.
    """
    results: list[Result] = [{} for _ in found]
    stats: list[os.stat_result | None] = []
    for item in found:
        try:
            stats.append(os.stat(item.file))
        except OSError:
            stats.append(None)
    compiling = sum(stat.st_size for stat in stats if stat is not None) <= COMPILED_TO
    waiting: list[tuple[int, bytes, os.stat_result]] = []
    for number, (item, stat) in enumerate(zip(found, stats, strict=True)):
        known = cache.by_stat(item, stat) if stat is not None else None
        if known is not None and (known.get("compiled") or not compiling):
            results[number] = known
            continue
        try:
            stat = stat or os.stat(item.file)
            raw = read(item.file)
        except OSError as error:
            # A link to nowhere, or a file that went while we looked, hides no code.
            kind = "foreign" if isinstance(error, FileNotFoundError) else "error"
            results[number] = {kind: f"cannot be read: {error.strerror}"}
            continue
        known = cache.by_content(item, stat, raw)
        if known is None or (compiling and not known.get("compiled")):
            known = _at_a_glance(item, raw, compiling)
            if known is None:
                waiting.append((number, raw, stat))
                continue
            cache.put(item, stat, raw, known)
        results[number] = known
    tasks = [(found[number], raw) for number, raw, _ in waiting]
    for (number, raw, stat), result in zip(waiting, _examine(tasks, jobs, compiling, limits), strict=True):
        results[number] = result
        if "error" not in result:
            cache.put(found[number], stat, raw, result)
    cache.save()
    return list(zip(found, results, strict=True))


def _at_a_glance(item: Found, raw: bytes, compiling: bool) -> Result | None:
    """The result of a file whose bytes alone show that it holds nothing; None where it has to be examined."""
    if item.file.endswith(CONFIGS):
        return None if CONFIG_WORDS.search(raw) else {"compiled": True}
    if item.file.endswith(NOTEBOOK):
        return None if compiling or has_literals(raw) or has_ignores(raw) else {}
    if may_hold_a_finding(raw) or has_ignores(raw) or b"\0" in raw[:4096] or (compiling and not compiles(raw)):
        return None
    beside = siblings_named(item, raw)
    if any(live for _, _, live in beside):
        return None
    result: Result = {"siblings": [[path, value] for path, value, _ in beside]} if beside else {}
    return {**result, "compiled": True} if compiling else result


def compiles(raw: bytes) -> bool:
    """Whether this Python takes a source file; it may be too old for one, so a parser decides where it does not."""
    if len(raw) > COMPILED_ALONE_TO:
        return True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            compile(raw, "<source>", "exec", dont_inherit=True)
        except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError):
            return False
    return True


def siblings_named(item: Found, raw: bytes) -> list[tuple[str, str, bool]]:
    """(path, content hash, may hold a finding) of each file of its project that a training script imports or reads."""
    training = trains(raw)
    if not training and not named_files.launched(raw):
        return []
    found: dict[str, tuple[str, str, bool]] = {}
    for path, name in _imports(item.file, raw) if training else ():
        if path not in found and len(found) >= MAX_SIBLINGS:
            continue
        try:
            content = read(path)
        except OSError:
            continue
        known = found.get(path, (path, digest(content), False))
        beside = os.path.dirname(path) == os.path.dirname(item.file)
        live = known[2] or (may_hold_a_finding(content) and (beside or name in ("", "*") or name in leads_to(content)))
        found[path] = (*known[:2], live)
    for path in named_files.named(item.file, raw):
        try:
            content = read(path)
        except OSError:
            continue
        found[path] = path, digest(content), named_files.says_low(content)
    return [found[path] for path in sorted(found)]


def _imports(file: str, raw: bytes) -> Iterator[tuple[str, str]]:
    """(path, name) of what a file imports from its project; no name for a module as a whole."""
    for level, module, names in imported(raw):
        path = locate(file, module, level)
        if path is not None and not level:
            yield path, ""
        for there, _ in names:
            if path is not None:
                yield path, there
                yield from origins(path, there)
            inner = locate(file, f"{module}.{there}" if module else there, level) if there != "*" else None
            if inner is not None:
                yield inner, ""


MAX_SIBLINGS = 24
"""Files that are looked at for what a script imports."""


def _examine(tasks: list[Task], jobs: int, compiling: bool, limits: tuple[int, int]) -> list[Result]:
    """The results of files in processes of their own, several when there is enough to parse; the largest first.

    With one job they are examined here, where a parser that dies takes this process along.
    """
    if jobs == 1 or not tasks or not hasattr(os, "fork"):
        return _examine_here(compiling, tasks)
    size = sum(len(raw) for _, raw in tasks)
    count = jobs or (min(os.cpu_count() or 1, 8) if size >= PARALLEL_FROM else 1)
    order = sorted(range(len(tasks)), key=lambda number: -len(tasks[number][1]))
    shares = [order[start::count] for start in range(count)]
    collected = 0

    def work(number: int) -> Result:
        nonlocal collected
        item, raw = tasks[number]
        collected += len(raw)
        if collected > COLLECT_EVERY:
            gc.collect()
            collected = 0
        return examine(item, raw, compiling)

    with _few_collections():
        import precaudit.static.analyze  # noqa: F401  once, for all processes; a tenth faster without collections
        from precaudit.static.files import workers

        found = workers.each(shares, work, lambda why: {"error": why}, workers.Limits(*limits))
    return [found[number] for number in range(len(tasks))]


@contextmanager
def _few_collections() -> Iterator[None]:
    """Python's own collector is off: trees are large and hold no cycles."""
    enabled = gc.isenabled()
    gc.disable()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        if enabled:
            gc.enable()


def _examine_here(compiling: bool, tasks: list[Task]) -> list[Result]:
    """The results of files one by one."""
    results, held = [], 0
    with _few_collections():
        for item, raw in tasks:
            results.append(examine(item, raw, compiling))
            held += len(raw)
            if held > COLLECT_EVERY:
                gc.collect()
                held = 0
    return results


def examine(item: Found, raw: bytes, compiling: bool = True) -> Result:
    """The result for one file's bytes. Never raises: what goes wrong is in `error`, with `internal` where we did it.

    Where it is not `compiling`, a syntax error in a function that no finding depends on may not be told.
    """
    from precaudit.static.decoding import SourceError

    try:
        if item.path.name.endswith(CONFIGS):
            from precaudit.static.files.configs import examine_config

            return {**examine_config(item, raw), "compiled": True}
        if item.path.name.endswith(NOTEBOOK):
            return {**_examine_notebook(item, raw), "compiled": True}
        return {**_examine_source(item, raw, compiling), "compiled": compiling}
    except SourceError as error:
        return {"error": f"not valid Python: {error}" if str(error)[:1].isdigit() else str(error)}
    except RecursionError:
        return {"error": "nested too deeply to follow"}
    except Exception as error:
        return {"error": internal_error(error), "internal": True}


def _examine_notebook(item: Found, raw: bytes) -> Result:
    """The result for a notebook: that of its cells' code, and which line of it begins which cell.

    A cell that does not parse is left out, and told in `unread`; one in another language is `foreign`.
    """
    from precaudit.notebook import Notebook, NotebookError
    from precaudit.static.decoding import SourceError
    from precaudit.static.source import parse

    try:
        notebook = Notebook(raw)
    except NotebookError as error:
        return {"foreign" if str(error).startswith("a notebook in") else "error": str(error)}
    unread = []
    text = notebook.text
    if not compiles(text.encode("utf-8")):
        for number, code in notebook.codes():
            try:
                parse(code)
            except SourceError as error:
                where, _, reason = str(error).partition(": ")
                line = where.partition(":")[0]
                at = f"cell {number}:line {where}" if line.isdigit() else f"cell {number}"
                unread.append(f"{at}: not valid Python: {reason or where}")
                text = notebook.without(number, text)
    result = _examine_source(item, text.encode("utf-8"), False)
    return {**result, "firsts": notebook.firsts(), **({"unread": unread} if unread else {})}


def _examine_source(item: Found, raw: bytes, compiling: bool) -> Result:
    from precaudit import suppressions
    from precaudit.static.decoding import decode

    text = decode(raw)
    facts, siblings = _facts(item, raw, text, compiling)
    result: Result = {
        "facts": facts,
        "suppressions": [
            [s.line, s.column, s.first, s.last, list(s.rules), s.whole_file, s.foreign] for s in suppressions.read(text)
        ],
    }
    if siblings:
        result["siblings"] = siblings
    return result


def _facts(item: Found, raw: bytes, text: str, compiling: bool) -> tuple[list[Any], list[list[str]]]:
    """The Facts of a file as JSON values, and [path, content hash] of each sibling they also rest on."""
    may_hold = may_hold_a_finding(raw)
    beside = [] if may_hold else siblings_named(item, raw)
    worth_running = may_hold or any(live for _, _, live in beside)
    if (compiling or not worth_running) and not compiles(raw):
        from precaudit.static.source import parse

        parse(text)
    if not worth_running:
        return [], [[path, value] for path, value, _ in beside]
    from precaudit.static.analyze import analyze
    from precaudit.static.source import Source

    facts, siblings = analyze(Source(item.shown, text, item.path))
    return [fact.as_json() for fact in facts], siblings
