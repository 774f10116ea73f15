"""`precaudit audit`: reads a training and runs it, in one report: what the source shows and what the run did."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from precaudit import settings as settings_module
from precaudit.commands.output import say
from precaudit.commands.trace import ConfiguredCommand, trace

if TYPE_CHECKING:
    from precaudit.launch.trace import Choice, Traced
    from precaudit.model.wire import Finding

OWN = click.Option(
    ["--verify-fix"], is_flag=True, help="Apply the certain fixes to a copy, trace that too, and compare."
)
LEFT_OUT: dict[str, Any] = {"no_inject": False, "verify_undisturbed": False}
"""Options of trace that are not asked for here, and what they are."""


def run(verify_fix: bool, **options: Any) -> int:
    """Read the script of COMMAND, run it, and report both: what the source shows confirmed, refuted or not exercised.

    \b
    precaudit audit train.py --lr 1e-4
    precaudit audit --verify-fix train.py
    """
    settings = _settings(options)
    names = sources(options["command"])
    if not names:
        say("no source file of the command is known: only the run is audited; check its source by itself")
    read = _Source(names, settings)
    traced: Any = trace.callback

    def amend(seen: Traced, choice: Choice) -> Traced:
        joined = read.beside(seen, choice)
        if verify_fix:
            from precaudit.commands.verify_fix import verified

            joined.report.coverage.notes += verified(read.names, settings, options, joined, choice)
        return joined

    return int(traced(**options, **LEFT_OUT, amend=amend))


def _settings(options: dict[str, Any]) -> settings_module.Settings:
    return replace(settings_module.load(), baseline="", select=(), ignore=(), extend_select=())


class _Source:
    """What `check` says of the command's script and what it imports."""

    def __init__(self, names: Sequence[str], settings: settings_module.Settings) -> None:
        self._settings = settings
        self.names = tuple(names)
        self.findings: list[Finding] = []
        self.files = 0
        self.unread: list[str] = []
        if names:
            self._read()

    def _read(self) -> None:
        from precaudit.commands.check import collect, unread_in
        from precaudit.static.files.fixes import mark_fixable
        from precaudit.static.findings import findings_of

        _, results = collect(self.names, self._settings, {})
        self.unread = [line for item, result in results for line in unread_in(item, result)]
        self.findings = findings_of(results, self._settings)
        mark_fixable(results, self.findings, self._settings)
        # What a script imports is examined with it; to be mended it has to be named.
        self.names = tuple(dict.fromkeys([*self.names, *(f.path for f in self.findings if f.path)]))
        self.files = len([item for item, result in results if "error" not in result])

    def beside(self, seen: Traced, choice: Choice) -> Traced:
        """The trace with what the source shows in it."""
        from precaudit import rulebook
        from precaudit.contracts.both import join
        from precaudit.launch import verdict
        from precaudit.launch.trace import keep

        report = seen.report
        static = [f for f in keep(self.findings, choice) if f.rule != "PA003"]
        report.command = "audit"
        report.findings = join(static, report, rulebook.load())
        report.coverage.files = self.files
        report.coverage.skipped += self.unread
        if report.status == "clean" and verdict.loud(report.findings):
            report.status = "findings"
        elif report.status == "findings" and not verdict.loud(report.findings):
            report.status = "clean"
        code = seen.verdict.exit_code
        if code in (verdict.CLEAN, verdict.FINDINGS):
            code = verdict.FINDINGS if verdict.reaches(report.findings, choice.fail_on) else verdict.CLEAN
        return replace(seen, verdict=replace(seen.verdict, exit_code=code))


def sources(command: Sequence[str]) -> list[str]:
    """The script or module of a command as a file below the working directory; nothing where it is none."""
    words = list(command)
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word.endswith(".py") and os.path.isfile(word):
            return [word]
        if word == "-m" and following and not following.startswith("torch.distributed"):
            stem = Path(*following.split("."))
            return [str(path) for path in (stem.with_suffix(".py"), stem / "__main__.py") if path.is_file()][:1]
    return []


audit = ConfiguredCommand(
    "audit",
    callback=run,
    params=[OWN, *(option for option in trace.params if option.name not in LEFT_OUT)],
    help=run.__doc__,
    short_help="Check and trace a training, in one report.",
    context_settings=dict(trace.context_settings),
)
