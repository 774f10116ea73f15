"""`audit --verify-fix`: applies the certain fixes to a copy of the project, traces that, and compares the two."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from precaudit import disk
from precaudit.commands.output import say
from precaudit.errors import UsageError

if TYPE_CHECKING:
    from precaudit.launch.trace import Choice, Traced
    from precaudit.model.wire import Report
    from precaudit.settings import Settings


def verified(
    names: Sequence[str], settings: Settings, options: dict[str, Any], before: Traced, choice: Choice
) -> list[str]:
    """What became of each figure of the report, a line each; said on stderr too."""
    from precaudit.commands.check import collect
    from precaudit.static.files.discovery import Excluder, discover
    from precaudit.static.files.fixes import fix_files

    here = Path.cwd()
    if any(not Path(name).resolve().is_relative_to(here.resolve()) for name in names):
        raise UsageError("--verify-fix: the script lies outside of the working directory; start from its folder")
    python = discover(["."], Excluder(settings.root.resolve(), (), False)).found
    inside = [Path(os.path.relpath(item.file, here)) for item in python]
    mended = {Path(os.path.relpath(name, here)) for name in names}
    with disk.mirrored(here, sorted({*inside, *mended})) as copy:
        os.chdir(copy)
        try:
            _, results = collect([str(name) for name in sorted(mended)], settings, {"no_cache": True})
            changed = fix_files(results, settings, write=True, unsafe=False)
            if not changed.fixes:
                lines = ["verify-fix: no fix is certain here, so nothing was changed or run again"]
            else:
                after = _traced_again(options, choice, here, copy)
                count = f"{changed.fixes} fix{'es' if changed.fixes > 1 else ''}"
                lines = [f"verify-fix: with {count} in a copy: {line}" for line in compared(before.report, after)]
        finally:
            os.chdir(here)
    for line in lines:
        say(line)
    return lines


def _traced_again(options: dict[str, Any], choice: Choice, here: Path, copy: Path) -> Report:
    from precaudit import rulebook
    from precaudit.launch.bootstrap import TraceSettings
    from precaudit.launch.command import Command, resolve
    from precaudit.launch.trace import trace_command

    resolved = resolve(options["command"], os.environ)
    # A script that was named by its whole path is the copy's.
    moved = tuple(word.replace(f"{here}/", f"{copy}/") if word.endswith(".py") else word for word in resolved.argv)
    wanted = TraceSettings(cwd=str(copy), **{key: options[key] for key in ("skip", "steps", "values", "eager")})
    command = Command(moved, resolved.shown)
    done = trace_command(command, wanted, choice, rulebook.load(), os.environ, options["timeout"], announce=say)
    return done.report


def compared(before: Report, after: Report) -> list[str]:
    """Findings, figures, bytes and step time, before and after: what changed of them, a line each."""
    from precaudit.launch.verdict import loud
    from precaudit.report.evidence import sentence
    from precaudit.report.words import duration, size

    seen = [f for f in before.findings if "trace" in f.seen_by]
    counts = [len(loud(findings)) for findings in (seen, after.findings)]
    lines = [f"{counts[0]} errors and warnings of the run, {counts[1]} after"]
    rest = {f.rule: f for f in loud(after.findings)}
    for finding in loud(seen):
        now = rest.get(finding.rule)
        if now is None:
            was = "; ".join(sentence(name, value) for name, value in finding.evidence.items())
            lines.append(f"{finding.rule} is gone{f' (was: {was})' if was else ''}")
            continue
        for name, value in finding.evidence.items():
            if name in now.evidence and now.evidence[name] != value:
                lines.append(f"{finding.rule}: {sentence(name, value)}, {sentence(name, now.evidence[name])} after")
    lines += [f"new: {f.rule} {f.message}" for f in loud(after.findings) if f.rule not in {one.rule for one in seen}]
    held = [sum(row.bytes for row in report.roles if row.role in LASTING) for report in (before, after)]
    if held[0] != held[1]:
        more = held[1] - held[0]
        lines.append(f"weights and optimizer state {size(held[0])}, {'+' if more > 0 else '-'}{size(abs(more))}")
    times = [report.coverage.overhead.get("step_s_untraced", 0.0) for report in (before, after)]
    if all(times):
        lines.append(f"an untraced step {duration(times[0])}, {times[1] / times[0] - 1:+.0%} after".replace("%", " %"))
    if after.status in ("script-failed", "inconclusive"):
        lines.append(f"the copy's run is {after.status}: {'; '.join(after.coverage.notes[-1:])}")
    return lines


LASTING = frozenset({"master_weight", "optimizer_state", "adapter_parameter"})
"""Roles whose bytes stay allocated from step to step."""
