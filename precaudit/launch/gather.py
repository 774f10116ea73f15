"""Makes one Report of several: reports of other nodes, or folders of rank files that nobody has judged yet."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from precaudit import __version__, judge
from precaudit.disk import LARGEST_REPORT, read, read_text
from precaudit.errors import ReportError
from precaudit.foreign import ForeignError, parse_json
from precaudit.launch import identity, roll, runs
from precaudit.launch.bootstrap import PrivateFolder, TraceSettings
from precaudit.launch.child import Ended
from precaudit.launch.collect import rank_files, read_peers, read_ranks
from precaudit.launch.command import Command
from precaudit.launch.merge import Merged, ranks_in_words
from precaudit.launch.save import HOME, LATEST
from precaudit.launch.trace import Choice, conclude, keep
from precaudit.launch.verdict import Status, loud
from precaudit.model.wire import Coverage, Finding, RankFile, Report, Run, Tool
from precaudit.rulebook import Rulebook

RUNS = ("trace", "audit")
"""Commands whose reports are of a run."""


def gather(paths: Sequence[Path], choice: Choice, book: Rulebook) -> Report:
    """The Report that these report files and folders add up to. Raises ReportError for one that holds none."""
    reports = [_read(path, choice, book) for path in paths]
    if len(reports) == 1:
        only = reports[0]
        only.findings = keep(only.findings, choice)
        if only.status == "findings" and not loud(only.findings):
            only.status = "clean"
        return only
    _must_be_one_run(paths, reports)
    return _merge(reports, choice, book)


def _must_be_one_run(paths: Sequence[Path], reports: Sequence[Report]) -> None:
    """Raises ReportError for traces that cannot be of the nodes of one run: what they differ in says nothing then."""
    if any(report.command not in RUNS for report in reports):
        return
    runs = [report.run for report in reports]
    places = [(report.coverage.rank_ids, report.coverage.world_size) for report in reports]
    if why := identity.strangers([str(path) for path in paths], runs, places):
        raise ReportError(f'{why}; show one at a time: "precaudit report {paths[0]}"')


def _read(path: Path, choice: Choice, book: Rulebook) -> Report:
    if path.is_dir() and _report_in(path) is None:
        for folder in (path, path / "ranks"):
            if rank_files(folder):
                return _judge_ranks(folder, choice, book)
        raise ReportError(f"{path}: holds neither report.json nor rank files; name a report or a folder of one trace")
    return read_report(path)


def _report_in(folder: Path) -> Path | None:
    names = ("report.json", str(LATEST), str(HOME / LATEST))
    return next((folder / name for name in names if (folder / name).is_file()), None)


def holds_report(path: Path) -> bool:
    """Whether a trace left its report in this folder."""
    return path.is_dir() and _report_in(path) is not None


def read_report(path: Path) -> Report:
    """The report in this file, or in the folder where a trace left it. Raises ReportError, one line."""
    path = (_report_in(path) if path.is_dir() else None) or path
    if not path.exists():
        way_out = (
            'run "precaudit trace train.py" first' if path.parts[-2:] == LATEST.parts else "name a report that is there"
        )
        raise ReportError(f"{path}: no such report; {way_out}")
    try:
        return Report.model_validate_json(read(path, LARGEST_REPORT))
    except OSError as error:
        raise ReportError(f"{path}: cannot be read: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = f"{first['msg'][:1].lower()}{first['msg'][1:]}"
        what = f"{where}: {message}" if where else message
        if writer := _other_writer(path):
            raise ReportError(
                f"{path}: was written by precaudit {writer}, and this is {__version__}, which does not know all of it: "
                f"{what}; read it with precaudit {writer}, or write it anew"
            ) from None
        raise ReportError(
            f"{path}: not a precaudit report of format_version 1: {what[:1].lower()}{what[1:]}; "
            'write one with "precaudit trace --output report.json"'
        ) from None


def _other_writer(path: Path) -> str:
    """The version of precaudit that wrote a report which cannot be read, where that is not this one; else ""."""
    try:
        raw = parse_json(read_text(path))
        writer = str(raw["tool"]["version"])
    except (OSError, ForeignError, KeyError, TypeError):
        return ""
    return writer if writer != __version__ else ""


def _judge_ranks(folder: Path, choice: Choice, book: Rulebook) -> Report:
    """Judges what `python -m precaudit.run` left below a launcher, where no parent was there to do it."""
    settings = TraceSettings(cwd=os.getcwd())
    # A folder copied without its settings is read all the same: paths then count from here.
    with contextlib.suppress(OSError, ForeignError, KeyError, TypeError):
        raw = parse_json(read_text(folder / "settings.json"))
        settings = TraceSettings(**{name: raw[name] for name in TraceSettings.__slots__ if name in raw})
    notes: list[str] = []
    merged = Merged()
    for rank in read_ranks(folder, notes):
        merged.add(rank)
    merged.finish()
    merged.coverage.notes += [*notes, *roll.call(merged, read_peers(folder))]
    lost = "precaudit was ended before it was over" if runs.was_ended(folder) else ""
    marks = PrivateFolder(folder).marks()
    return conclude(Command((), str(folder)), settings, choice, book, merged, Ended(0, False, 0.0), marks, lost).report


def _merge(reports: Sequence[Report], choice: Choice, book: Rulebook) -> Report:
    commands = {report.command for report in reports}
    if len(commands) > 1:
        raise ReportError(f"reports of {' and '.join(sorted(commands))} do not merge; name reports of one command")
    merged = Merged(lambda numbers: _named([reports[n] for n in numbers], numbers))
    for number, report in enumerate(reports):
        merged.add(
            RankFile(
                format=1,
                rank=number,
                world_size=len(reports),
                status="stopped",
                steps=report.coverage.steps,
                coverage=report.coverage,
                facts=report.facts,
                exact=report.exact,
                inventory=report.inventory,
                picture=report.picture,
            )
        )
    merged.finish()
    _take_roll(merged.coverage, reports)
    merged.coverage.files = sum(report.coverage.files for report in reports)
    witness = "check" if reports[0].command == "check" else "trace"
    differences = judge.judge(merged.disagreements(), book, witness)
    findings = keep(_united([*(report.findings for report in reports), differences]), choice)
    return Report(
        tool=Tool(version=__version__),
        command=reports[0].command,
        status=_status(reports, findings),
        findings=findings,
        roles=judge.role_table(merged.facts, findings, book),
        coverage=merged.coverage,
        facts=[fact.as_json() for fact in merged.facts],
        exact=merged.exact,
        inventory=merged.inventory,
        picture=merged.picture,
        by_rank=[row for report in reports for row in report.by_rank],
        run=_run_of(reports),
        exit_code=max(
            (r.exit_code for r in reports if r.exit_code is not None and not _met_our_stop(r, reports)), default=None
        ),
    )


def _run_of(reports: Sequence[Report]) -> Run | None:
    """The identity of the first node's run, with all their hosts and the longest time."""
    runs = [report.run for report in reports if report.run is not None]
    if not runs:
        return None
    hosts = ", ".join(dict.fromkeys(run.host for run in runs))
    return runs[0].model_copy(update={"host": hosts, "duration_s": max(run.duration_s for run in runs)})


def _named(reports: Sequence[Report], numbers: Sequence[int]) -> str:
    """The ranks of these reports; of reports without any, their numbers as the user gave them, from 1."""
    if all(report.coverage.rank_ids for report in reports):
        return ranks_in_words(sorted({rank for report in reports for rank in report.coverage.rank_ids}))
    return f"report{'s' if len(numbers) > 1 else ''} {', '.join(str(n + 1) for n in numbers)}"


def _take_roll(cover: Coverage, reports: Sequence[Report]) -> None:
    """Which ranks all nodes together have; what one node misses may be in another's report."""
    covers = [report.coverage for report in reports]
    cover.ranks = sum(one.ranks for one in covers)
    cover.world_size = max(one.world_size for one in covers)
    cover.rank_ids = sorted({rank for one in covers for rank in one.rank_ids})
    cover.stopped = sum(one.stopped for one in covers)
    alone = {line for one in covers for line in roll.missing(one.rank_ids, one.world_size)}
    cover.notes = [note for note in cover.notes if note not in alone]
    cover.notes += roll.missing(cover.rank_ids, cover.world_size)
    for number, report in enumerate(reports):
        if _met_our_stop(report, reports):
            cover.notes.append(
                f"{_named([report], [number])} ended with exit code {report.exit_code} when precaudit had stopped "
                "other nodes: that is the stop, not a failure of the training"
            )


def _met_our_stop(report: Report, reports: Sequence[Report]) -> bool:
    """Whether a node failed while another node of the same run was stopped: the first stop decides for all."""
    mine = report.coverage
    return (
        report.exit_code not in (None, 0)
        and not mine.stopped
        and any(
            other.coverage.stopped
            and other.coverage.world_size == mine.world_size > 1
            and not set(other.coverage.rank_ids) & set(mine.rank_ids)
            for other in reports
        )
    )


def _united(lists: Sequence[Sequence[Finding]]) -> list[Finding]:
    """Every finding once, worst first; one that several reports have keeps the first report's figures."""
    seen: dict[tuple[object, ...], Finding] = {}
    for findings in lists:
        for one in findings:
            seen.setdefault((one.rule, one.path, one.line, one.dtype, one.message, one.because), one)
    return sorted(seen.values(), key=lambda f: (-f.severity.rank, f.rule, f.path or "", f.line or 0, f.column or 0))


def _status(reports: Sequence[Report], findings: Sequence[Finding]) -> Status:
    statuses = {report.status for report in reports}
    if loud(findings):
        return "findings"
    if any(report.status == "script-failed" and not _met_our_stop(report, reports) for report in reports):
        return "script-failed"
    return "inconclusive" if statuses == {"inconclusive"} else "clean"
