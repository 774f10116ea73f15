"""Decides the status and the exit code of a trace, and finds the one line that tells the user why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from precaudit.launch.bootstrap import Marks, last_line
from precaudit.launch.child import Ended
from precaudit.model.wire import Finding, Severity

Status = Literal["clean", "findings", "inconclusive", "script-failed"]

CLEAN, FINDINGS, INTERNAL, INCONCLUSIVE = 0, 1, 3, 5

UNSEEN = (
    "if it starts Python with -I, -E or -S or sets PYTHONPATH anew, "
    'write "python -m precaudit.run" for "python" there and add --no-inject'
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a trace comes to."""

    status: Status
    exit_code: int
    line: str
    """One line for the user: what went wrong, and the way out; empty where all went well."""


@dataclass(frozen=True, slots=True)
class Observed:
    """What the verdict rests on, all ranks together."""

    statuses: Sequence[str]
    """The `status` of each rank file."""
    steps: int
    """Optimizer steps traced; those before the window do not count."""
    attempts: int
    """Optimizer steps that were taken or tried in all, before and inside the window."""
    updated: bool
    """A weight was updated, or an attempt at it was made: there was training to see."""
    findings: Sequence[Finding]
    fail_on: str
    elsewhere: bool = False
    """Some ranks run on other nodes, whose own trace may stop them before these."""

    lost: str = ""
    """A clause on what was seen and could not be written, with the reason; empty where nothing is missing."""

    @property
    def closed(self) -> bool:
        """Whether some process showed all the steps that were to be traced."""
        return bool({"stopped", "finished"} & set(self.statuses))

    @property
    def over(self) -> bool:
        """Whether nothing of the training was left to see here, and what came after it may well be the stop's doing."""
        wanted = {"stopped", "finished"} if self.elsewhere else {"stopped"}
        return bool(self.statuses) and wanted.issuperset(self.statuses)


def decide(command: str, skip: int, wanted: int, ended: Ended, marks: Marks, seen: Observed) -> Verdict:
    """The verdict on a command that was to show `wanted` steps after the first `skip`.

    The command's own failure decides only while the window was open: once every process has written that precaudit
    stopped it, whatever a driver script makes of that is ours, and the findings decide.
    """
    failed = ended.code != 0 and not seen.over and not ended.timed_out
    found = loud(seen.findings)
    if found:
        status: Status = "findings"
    elif failed:
        status = "script-failed"
    else:
        # Of a window that never closed nobody knows what the rest of it would have shown.
        status = "clean" if seen.updated and seen.closed else "inconclusive"
    return Verdict(
        status, _exit_code(status, failed, ended, marks, seen), _line(command, skip, wanted, ended, marks, seen)
    )


def _exit_code(status: Status, failed: bool, ended: Ended, marks: Marks, seen: Observed) -> int:
    if failed:
        return ended.code
    if status == "inconclusive":
        return INTERNAL if marks.problems and not seen.statuses else INCONCLUSIVE
    return FINDINGS if reaches(seen.findings, seen.fail_on) else CLEAN


def loud(findings: Sequence[Finding]) -> list[Finding]:
    """The findings that count: neither suppressed nor mere notes."""
    return [f for f in findings if not f.suppressed and f.severity is not Severity.NOTE]


def reaches(findings: Sequence[Finding], fail_on: str) -> bool:
    """Whether an unsuppressed finding is at or above the severity that --fail-on names; "never" is above all."""
    if fail_on == "never":
        return False
    least = Severity(fail_on).rank
    return any(f.severity.rank >= least and not f.suppressed for f in findings)


def _line(command: str, skip: int, wanted: int, ended: Ended, marks: Marks, seen: Observed) -> str:
    if seen.over:
        if ended.code and "finished" in seen.statuses:
            return (
                f"{command}: {ended.how} after its traced steps; ranks run on other nodes too, and precaudit may have "
                "stopped those first: that is the stop, not a failure of the training"
            )
        if ended.code:
            return (
                f"{command}: {ended.how} after precaudit had stopped its training; "
                "that is the stop, not a failure of the training"
            )
        return ""
    if seen.lost:
        return f"{command}: {seen.lost}; see to that, or name another folder with --output-dir"
    if marks.refused:
        return f"{command}: {marks.refused}"
    for mend in (_never_loaded, _no_usable_torch, _own_failure):
        line = mend(command, ended, marks, seen)
        if line:
            return line
    if ended.timed_out:
        return (
            f"{command}: stopped by --timeout after {ended.seconds:.0f} s with {seen.steps} of {wanted} steps traced; "
            "give it more time, or lower --skip and --steps"
        )
    if ended.code and not seen.statuses:
        return f"{command}: {ended.how} before any training was seen"
    if ended.code and "watching" not in seen.statuses:
        return f"{command}: {ended.how}, after the traced steps"
    if ended.code:
        stop = "; if precaudit had stopped another node by then, that is why" if seen.elsewhere else ""
        return (
            f"{command}: {ended.how} before the traced steps were over; the report holds what was seen until then{stop}"
        )
    if not seen.statuses:
        return (
            f"{command}: no backward and no optimizer step was seen; trace a command that trains at least one step "
            f"({UNSEEN})"
        )
    if not seen.updated:
        return f"{command}: ended before an optimizer step was taken; let it train at least {skip + wanted} steps"
    if seen.steps < wanted and "watching" in seen.statuses:
        return f"{command}: {_too_short(skip, wanted, seen)}"
    return ""


def _too_short(skip: int, wanted: int, seen: Observed) -> str:
    """What to do about a run that ended before its window did."""
    total = f"let it take at least {skip + wanted}"
    if seen.steps:
        return f"ended after {seen.steps} of the {wanted} steps to trace; {total}, or say --steps {seen.steps}"
    taken = max(seen.attempts, 1)
    needs = f"the trace needs {wanted}" + (f" more after the first{f' {skip}' if skip > 1 else ''}" if skip else "")
    return (
        f"no step was traced: it took {taken} optimizer step{'s' if taken > 1 else ''}, and {needs}; {total}"
        f"{f', or trace from the first on with --skip 0 --steps {taken}' if skip else ''}"
    )


def _never_loaded(command: str, ended: Ended, marks: Marks, seen: Observed) -> str:
    if marks.loaded or ended.timed_out or seen.statuses:
        return ""
    if marks.gone:
        return (
            f"{command}: {marks.gone}, which holds the tracer, was removed while the command ran; "
            "set TMPDIR to a folder that nothing empties"
        )
    return f"{command}: no Python that it runs could be seen; {UNSEEN}"


def _no_usable_torch(command: str, ended: Ended, marks: Marks, seen: Observed) -> str:
    if marks.torch_too_old and not seen.statuses:
        return f"{command}: torch {marks.torch_too_old} cannot be traced; install torch 2.4 or newer there"
    if marks.torch or marks.gone:
        return ""
    if marks.torch_missing:
        return (
            f"{command}: {marks.torch_missing} has no torch; install it there, or name the Python that has it: "
            '"precaudit trace /path/to/python train.py"'
        )
    if ended.code or ended.timed_out or seen.statuses:
        return ""
    return f"{command}: no process of it was seen to import torch; trace the command that trains ({UNSEEN})"


def _own_failure(command: str, ended: Ended, marks: Marks, seen: Observed) -> str:
    if not marks.problems or seen.statuses:
        return ""
    return (
        f"{command}: precaudit's own tracer failed in it: {last_line(marks.problems[0])}; "
        "this is a bug of precaudit: please report it"
    )
