"""Examines files one by one or in several processes, and remembers what it found."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from precaudit.static.cache import Cache, digest
from precaudit.static.files import CONFIGS, SOURCES, Found
from precaudit.static.prefilter import may_hold_a_finding

CONFIG_WORDS = re.compile(rb"(?:fp|bf)16|float16|16-true|half|precaudit")
EMPTY: dict[str, Any] = {}
"""The result of a file that cannot hold a finding."""
PARALLEL_FROM = 24
"""Files to parse from which several processes pay for their start."""


def examine_all(found: Sequence[Found], cache: Cache, jobs: int = 0) -> list[tuple[Found, dict[str, Any]]]:
    """Each file with its result: `facts` and `suppressions` as JSON values, or `error`, one line."""
    results: dict[Path, dict[str, Any]] = {}
    waiting: list[tuple[Found, bytes, os.stat_result]] = []
    for item in found:
        try:
            stat = item.path.stat()
            known = cache.by_stat(item.path, stat)
            if known is not None:
                results[item.path] = known
                continue
            raw = item.path.read_bytes()
        except OSError as error:
            results[item.path] = {"error": f"cannot be read: {error.strerror}"}
            continue
        known = cache.by_content(item.path, stat, raw)
        if known is not None:
            results[item.path] = known
        elif item.path.name.endswith(CONFIGS) and not CONFIG_WORDS.search(raw):
            results[item.path] = EMPTY
            cache.put(item.path, stat, raw, EMPTY)
        elif item.path.name.endswith(SOURCES) and not may_hold_a_finding(raw) and b"\0" not in raw[:4096]:
            beside = siblings_named(item.path, raw)
            if any(found for _, _, found in beside):
                waiting.append((item, raw, stat))
                continue
            result = {"siblings": [[path, value] for path, value, _ in beside]} if beside else EMPTY
            results[item.path] = result
            cache.put(item.path, stat, raw, result)
        else:
            waiting.append((item, raw, stat))
    tasks = [(item, raw) for item, raw, _ in waiting]
    for (item, raw, stat), result in zip(waiting, _examine(tasks, jobs), strict=True):
        results[item.path] = result
        if "error" not in result:
            cache.put(item.path, stat, raw, result)
    cache.save()
    return [(item, results[item.path]) for item in found]


IMPORT = re.compile(rb"^(?:from|import)[ \t]+(\w+)", re.MULTILINE)


def siblings_named(path: Path, raw: bytes) -> list[tuple[str, str, bool]]:
    """(path, content hash, may hold a finding) of each module beside a training script that it imports by name."""
    if b"optim" not in raw and b"backward" not in raw:
        return []
    found = []
    for name in sorted(set(IMPORT.findall(raw))):
        sibling = path.with_name(name.decode() + ".py")
        try:
            content = sibling.read_bytes()
        except OSError:
            continue
        found.append((str(sibling), digest(content), may_hold_a_finding(content)))
    return found


def _examine(tasks: list[tuple[Found, bytes]], jobs: int) -> list[dict[str, Any]]:
    workers = jobs or min(os.cpu_count() or 1, 8)
    if workers > 1 and len(tasks) >= PARALLEL_FROM:
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor

        method = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
        with ProcessPoolExecutor(workers, multiprocessing.get_context(method)) as pool:
            return list(pool.map(_task, tasks, chunksize=4))
    return [_task(task) for task in tasks]


def _task(task: tuple[Found, bytes]) -> dict[str, Any]:
    return examine(task[0], task[1])


def examine(item: Found, raw: bytes) -> dict[str, Any]:
    """The result for one file's bytes. Never raises: what goes wrong is in `error`."""
    if item.path.name.endswith(CONFIGS):
        from precaudit.static.configs import examine_config

        return examine_config(item, raw)
    from precaudit import suppressions
    from precaudit.static.analyze import analyze
    from precaudit.static.source import Source, SourceError, decode

    try:
        text = decode(raw)
        source = Source(item.shown, text, item.path, shorten=True)
        facts, siblings = analyze(source)
    except SourceError as error:
        return {"error": f"not valid Python: {error}" if str(error)[:1].isdigit() else str(error)}
    except RecursionError:
        return {"error": "nested too deeply to follow"}
    result: dict[str, Any] = {
        "facts": [fact.as_json() for fact in facts],
        "suppressions": [
            [s.line, s.column, s.first, s.last, list(s.rules), s.whole_file, s.foreign] for s in suppressions.read(text)
        ],
    }
    if siblings:
        result["siblings"] = siblings
    return result
