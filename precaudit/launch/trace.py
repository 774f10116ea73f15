"""One trace from start to Report: private folder, command, rank files, judge, verdict."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from precaudit import __version__, judge
from precaudit.allowed.contract import NOTHING, Contract
from precaudit.launch import identity, roll, verdict, verify
from precaudit.launch.bootstrap import Marks, TraceSettings, last_line, private_folder
from precaudit.launch.child import Ended, run_command
from precaudit.launch.collect import read_losses, read_peers, read_ranks
from precaudit.launch.command import Command
from precaudit.launch.identity import Started
from precaudit.launch.meanwhile import Meanwhile
from precaudit.launch.merge import Merged
from precaudit.launch.progress import Progress
from precaudit.launch.roll import Ends
from precaudit.model.exact import ExactStep
from precaudit.model.vocabulary import Fact, Role, Site
from precaudit.model.wire import Assumed, Finding, Preflight, Report, Tool
from precaudit.rulebook import Rulebook
from precaudit.silence import CommentsBelow, PerFileIgnores, silence


@dataclass(frozen=True, slots=True)
class Choice:
    """Which findings the user wants to see, and which of them fail the run."""

    rules: frozenset[str]
    """Rule ids."""
    roles: frozenset[str] = frozenset()
    """Only these, or all where empty."""
    fail_on: str = "error"
    per_file_ignores: Mapping[str, Sequence[str]] = field(default_factory=dict)
    root: Path = Path()
    """What the patterns of per_file_ignores count from."""
    contract: Contract = NOTHING


@dataclass(frozen=True, slots=True)
class Traced:
    """A finished trace."""

    report: Report
    verdict: verdict.Verdict
    verified: str = ""
    """What --verify-undisturbed found, in a sentence; empty where nobody asked."""


def trace_command(
    command: Command,
    settings: TraceSettings,
    choice: Choice,
    book: Rulebook,
    environment: Mapping[str, str],
    timeout: float | None = None,
    inject: bool = True,
    announce: Callable[[str], None] = lambda line: None,
    so_far: Callable[[Report], None] | None = None,
    started: Started | None = None,
    terminal: int | None = None,
) -> Traced:
    """Runs the command under the tracer and judges what was seen. Raises PrecauditError where it cannot be started.

    What the ranks saw lies in `settings.ranks_folder`; where that is empty, in the private folder. `so_far` is given
    the report of a command that runs on, when its first window is over and at each later event. `terminal` is where a
    line of progress may be drawn.
    """
    notes: list[str] = []
    merged = Merged()
    started = started or identity.begin(command.argv, settings.cwd)
    with private_folder(settings) as private:
        announce(_banner(command, settings))
        child_environment = private.environment(environment) if inject else dict(environment)
        child_environment["PRECAUDIT_FOLDER"] = str(private.path)
        ranks = Path(settings.ranks_folder) if settings.ranks_folder else private.ranks

        def renew() -> None:
            report = _so_far(command, settings, choice, book, ranks, private.marks(), started)
            if report is not None and so_far is not None:
                so_far(report)

        runs_on = so_far is not None and bool(settings.keep_going or settings.at)
        shown: AbstractContextManager[object] = nullcontext()
        if terminal is not None:
            shown = Progress(terminal, private.path, ranks, settings.skip, settings.steps, settings.keep_going)
        with Ends(private.ranks) as ends, shown, Meanwhile(ranks, renew) if runs_on else nullcontext():
            ended = run_command(command.argv, child_environment, timeout)
        for rank in read_ranks(ranks, notes):
            merged.add(rank)
        notes += roll.call(merged, read_peers(private.ranks), ends)
        marks = private.marks()
        lost = read_losses(ranks)
        records = verify.read_records(private.path)
    merged.finish()
    merged.coverage.notes += notes
    traced = conclude(command, settings, choice, book, merged, ended, marks, lost)
    traced.report.run = started.ended(merged.program)
    if not settings.record:
        return traced
    return _verified(traced, records, lambda: run_plain(command, settings, environment, records, timeout, announce))


def _so_far(
    command: Command,
    settings: TraceSettings,
    choice: Choice,
    book: Rulebook,
    ranks: Path,
    marks: Marks,
    started: Started,
) -> Report | None:
    """The report on a command that runs on; None where no rank has come to the end of its first window."""
    notes: list[str] = []
    merged = Merged()
    for rank in read_ranks(ranks, notes):
        merged.add(rank)
    if not {"finished", "stopped"} & set(merged.statuses):
        return None
    merged.finish()
    merged.coverage.notes += [*notes, "the command runs on: this is what was seen until now"]
    report = conclude(command, settings, choice, book, merged, Ended(0, False, 0.0), marks).report
    report.run = started.ended(merged.program)
    return report


def _verified(traced: Traced, records: verify.Records, run_again: Callable[[], verify.Records]) -> Traced:
    """The same trace with a note on whether it changed what the program computes; exit code 3 where it did."""
    plain = run_again() if records.processes else verify.Records()
    differ = bool(records.processes and verify.compare(records, plain).difference)
    line, disturbed = verify.says(records, plain, run_again() if differ else None)
    traced.report.coverage.notes.append(line)
    return replace(
        traced,
        verified=line,
        verdict=replace(traced.verdict, exit_code=verdict.INTERNAL) if disturbed else traced.verdict,
    )


def run_plain(
    command: Command,
    settings: TraceSettings,
    environment: Mapping[str, str],
    traced: verify.Records,
    timeout: float | None,
    announce: Callable[[str], None],
) -> verify.Records:
    """Runs the command once more without the trace, as far as a traced run of it came, and gives back its record."""
    announce(f"running {command.shown} once more, without the trace, to compare bit by bit")
    with private_folder(replace(settings, traced=False)) as private:
        far_enough = lambda: verify.read_records(private.path).covers(traced)  # noqa: E731
        child_environment = {**private.environment(environment), "PRECAUDIT_FOLDER": str(private.path)}
        run_command(command.argv, child_environment, timeout, far_enough)
        return verify.read_records(private.path)


def _banner(command: Command, settings: TraceSettings) -> str:
    """What is going to happen to the command."""
    first, last = settings.skip + 1, settings.skip + settings.steps
    several = f"steps {first} {'and' if last == first + 1 else 'to'} {last} are watched"
    watched = several if last > first else f"step {first} is watched"
    if settings.exact:
        watched += ", one of them in float64 too, in 6 to 30 times its time" if last > first else ", in float64 too"
    if settings.at:
        watched += f", and two steps from {', '.join(map(str, settings.at))} on"
    gpu = " as on a GPU, on this CPU" if settings.preflight is not None else ""
    if settings.looks_on:
        return f"running {command.shown}{gpu}: {watched}, then it runs on; what changes later is looked at again"
    if settings.keep_going:
        return f"running {command.shown}{gpu}: {watched}, then it runs on untraced"
    return f"running {command.shown}{gpu}: {watched}, then it is stopped (--keep-going: it runs on)"


def conclude(
    command: Command,
    settings: TraceSettings,
    choice: Choice,
    book: Rulebook,
    merged: Merged,
    ended: Ended,
    marks: Marks,
    lost: str = "",
) -> Traced:
    """Judges what the ranks saw and makes the Report; `lost` says what of it could not be written, and why."""
    report = report_of(merged, settings, choice, book)
    seen = verdict.Observed(
        statuses=merged.statuses,
        elsewhere=not settings.keep_going and merged.world_size > len(merged.ranks),
        steps=merged.coverage.steps,
        attempts=merged.coverage.attempts,
        updated=_updated(merged),
        findings=report.findings,
        fail_on=choice.fail_on,
        lost=lost,
    )
    outcome = verdict.decide(command.shown, settings.skip, settings.steps, ended, marks, seen)
    if merged.statuses:
        report.coverage.notes += [f"the tracer failed in one process: {last_line(text)}" for text in marks.problems]
    if outcome.line:
        report.coverage.notes.append(outcome.line)
    report.status, report.exit_code = outcome.status, ended.code
    return Traced(report, outcome)


def report_of(merged: Merged, settings: TraceSettings, choice: Choice, book: Rulebook) -> Report:
    """What the ranks saw, judged, as far as that says it; how the run ended is not in it yet."""
    facts = [_relative(fact, settings.cwd) for fact in merged.facts]
    frameworks = frameworks_of(merged.coverage.setup)
    cwd = Path(settings.cwd)
    allowed = choice.contract.of_run([(row.name, row.dtypes) for row in merged.inventory])
    found = judge.judge([*facts, *allowed.expired(cwd)], book, "trace", frameworks, allowed)
    if len(merged.ranks) > 1:
        _name_ranks(found, merged, settings.cwd, book, frameworks)
    findings = PerFileIgnores(choice.per_file_ignores, choice.root, cwd, book).leave(keep(found, choice))
    silence(findings, CommentsBelow(cwd))
    preflight = _relative_preflight(merged.preflight, settings.cwd)
    merged.coverage.notes += assumed_in_words(preflight.assumed) if preflight is not None else []
    return Report(
        tool=Tool(version=__version__),
        command="trace",
        status="inconclusive",
        findings=findings,
        roles=[r for r in judge.role_table(facts, findings, book) if not choice.roles or r.role in choice.roles],
        coverage=merged.coverage,
        facts=[fact.as_json() for fact in facts],
        exact=_relative_exact(merged.exact, settings.cwd),
        inventory=merged.inventory,
        picture=merged.picture,
        by_rank=merged.by_rank,
        preflight=preflight,
    )


def _updated(merged: Merged) -> bool:
    """Whether training was seen: an attempt at a step, a window that closed, or weights that are being updated."""
    weights = {Role.MASTER_WEIGHT, Role.OPTIMIZER_STATE}
    return (
        merged.coverage.steps > 0
        or merged.coverage.attempts > 0
        or any(status != "watching" for status in merged.statuses)
        or any(fact.role in weights for fact in merged.facts)
    )


def keep(findings: Sequence[Finding], choice: Choice) -> list[Finding]:
    """The findings that --select, --ignore and --only leave."""
    return [f for f in findings if f.rule in choice.rules and (not choice.roles or f.role in choice.roles)]


def frameworks_of(setup: Mapping[str, str]) -> list[str]:
    """The framework names in which a fix may be worded, from "FSDP2, DeepSpeed"."""
    return [name.strip().lower() for name in setup.get("frameworks", "").split(",") if name.strip()]


def _name_ranks(
    findings: Sequence[Finding], merged: Merged, cwd: str, book: Rulebook, frameworks: Sequence[str]
) -> None:
    """Notes on each finding the ranks whose Facts led to it."""
    ranks: dict[tuple[object, ...], set[int]] = {}
    for fact, where in merged.ranks_of():
        for one in judge.judge([_relative(fact, cwd)], book, "trace", frameworks):
            ranks.setdefault((one.rule, one.path, one.line, one.dtype, one.message), set()).update(where)
    for finding in findings:
        key = (finding.rule, finding.path, finding.line, finding.dtype, finding.message)
        finding.ranks = sorted(ranks.get(key, ()))


def _relative_exact(exact: ExactStep | None, cwd: str) -> ExactStep | None:
    """The exact step with its places named in the same way."""
    for row in exact.operations if exact is not None else ():
        site = _relative_site(Site(row.path, row.line or 0, 0, 0, 0, ""), cwd) if row.path else None
        row.path = site.path if site is not None else None
    return exact


MOST_ASSUMED = 5
"""Notes of this kind; the JSON report has all."""


def assumed_in_words(rows: Sequence[Assumed]) -> list[str]:
    """What a preflight made up, a note for each; of many, the first."""
    said = []
    for row in rows[:MOST_ASSUMED]:
        where = f" ({row.path}:{row.line}{f', {row.count} times' if row.count > 1 else ''})" if row.path else ""
        said.append(f"assumed: {row.what}{where}")
    left = len(rows) - len(said)
    return [*said, *([f"assumed: {left} more answer{'s' if left > 1 else ''}, in the JSON report"] if left else [])]


def _relative_preflight(preflight: Preflight | None, cwd: str) -> Preflight | None:
    """What was assumed, its lines named in the same way."""
    if preflight is None:
        return None
    rows = []
    for row in preflight.assumed:
        site = _relative_site(Site(row.path, row.line, 0, 0, 0, ""), cwd) if row.path else None
        rows.append(row.model_copy(update={"path": site.path if site is not None else ""}))
    return preflight.model_copy(update={"assumed": rows})


def _relative(fact: Fact, cwd: str) -> Fact:
    """The Fact with its places named from the working directory, as every report names them."""
    site = _relative_site(fact.site, cwd)
    cause = fact.cause._replace(site=_relative_site(fact.cause.site, cwd)) if fact.cause else None
    return fact if (site, cause) == (fact.site, fact.cause) else replace(fact, site=site, cause=cause)


def _relative_site(site: Site | None, cwd: str) -> Site | None:
    if site is None or not os.path.isabs(site.path):
        return site
    for base in (cwd, os.path.realpath(cwd)):
        if Path(site.path).is_relative_to(base):
            return site._replace(path=Path(site.path).relative_to(base).as_posix())
    return site._replace(path=Path(os.path.relpath(site.path, cwd)).as_posix())
