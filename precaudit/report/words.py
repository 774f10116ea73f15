"""What every format says in the same words: marks, places, sizes, counts, the opening and the closing line."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping

from precaudit.model.wire import Finding, Line, Report, Severity
from precaudit.report.evidence import is_share, sentence, share

MARKS: Mapping[Severity, str] = {Severity.ERROR: "x", Severity.WARNING: "!", Severity.NOTE: "i"}
"""The sign of each severity where colour may be missing."""
NAMES = re.compile(r"[A-Za-z_]+\d+")
"""Digits that belong to a name, `float16` or `beta2`, are no number."""
ENOUGH = 90
"""Letters that a short explanation has at least, where its rule says more."""
NOTHING = "no errors, no warnings"
SHOW_AGAIN = "precaudit report --open"
HIDDEN: Mapping[str, str] = {"baseline": "in the baseline", "unchanged": "on unchanged lines"}
"""Why findings are left out, after their number."""
UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB")


def visible(text: str) -> str:
    """Text from outside with control, bidirectional and lone surrogate characters written as escapes.

    A terminal would obey them. Newlines and tabs become spaces: what calls this shows one paragraph.
    """
    if text.isprintable():
        return text
    return "".join(
        " " if char in "\n\r\t" else char if char.isprintable() or unicodedata.category(char) == "Zs" else _escape(char)
        for char in text
    )


def encodable(text: str) -> str:
    """JSON text in which a lone surrogate, as a file name that is not UTF-8 leaves it, is written as its escape."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _escape(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"


def size(count: int) -> str:
    """Bytes for people, in powers of 1000: "4.10 GB"."""
    value, unit = float(count), 0
    while abs(value) >= 999.5 and unit < len(UNITS) - 1:
        value /= 1000
        unit += 1
    return (
        f"{count:,} bytes"
        if unit == 0
        else f"{value:.3g} {UNITS[unit]}"
        if value >= 100
        else f"{value:.2f} {UNITS[unit]}"
    )


def plural(count: int, noun: str) -> str:
    """`1 error`, `2 errors`, `2 micro-batches`."""
    many = noun[:-1] + "ies" if noun.endswith("y") else noun + ("es" if noun.endswith(("s", "ch")) else "s")
    return f"{count:,} {noun if count == 1 else many}"


def place(finding: Finding | Line) -> str:
    """`train.py:42:17`, as editors and terminals make it a link; empty where the place is not known.

    A script out of a wheel that lies elsewhere is named from its package on: `trl/scripts/sft.py:119:5`.
    """
    if not finding.path:
        return ""
    shown = re.sub(r"^\.\./.*-packages/", "", finding.path)
    numbers = [str(n) for n in (finding.line, finding.column if finding.line else None) if n]
    if finding.cell and numbers:
        numbers = [f"cell {finding.cell}", f"line {numbers[0]}", *numbers[1:]]
    return ":".join([visible(shown), *numbers])


def mark(finding: Finding) -> str:
    """` [*]` where --fix mends a finding."""
    return " [*]" if finding.fixable else ""


def in_cell(finding: Finding) -> str:
    """`cell 3:line 2: ` where a finding is in a notebook, before the message of a service that knows no cells."""
    return f"cell {finding.cell}:line {finding.line}: " if finding.cell and finding.line else ""


ROOM = 16
"""Doublings below inf that are room enough: then nothing is said of it."""


def measured(finding: Finding) -> list[tuple[str, float]]:
    """The measured numbers that say something: a share of nothing is left out, and that inf is far away."""
    return [
        (name, value)
        for name, value in finding.evidence.items()
        if (value < ROOM if name == "headroom" else value or not is_share(name))
    ]


def evidence(finding: Finding) -> list[str]:
    """The measured numbers in words, in the order of the table of sentences."""
    told = [visible(sentence(name, value)) for name, value in measured(finding)]
    if finding.standing_because:
        told = [standing(finding), *told]
    return [*told, *filter(None, [where(finding)])]


def standing(finding: Finding) -> str:
    """What an audit says of a finding: "refuted: in this run it held float32 here"."""
    because = visible(finding.standing_because)
    return f"{finding.standing.replace('-', ' ')}: {because}" if finding.standing else f"seen by the run: {because}"


NAMED = 6
"""Parameters, or patterns of them, that a sentence names."""


def where(finding: Finding) -> str:
    """Which parameters did not move at all, or lost the most; empty where the loss is not told apart by them."""
    still = [part for part in finding.parts if part.evidence.get("updates_lost") == 1]
    if still:
        names = [visible(part.name) for part in still]
        more = f", and {len(names) - NAMED} more" if len(names) > NAMED else ""
        count = f"{sum(part.tensors for part in still):,} of {plural(finding.count, 'parameter')}"
        return f"{count} did not move at all: {', '.join(names[:NAMED])}{more}"
    if len(finding.parts) < 2:
        return ""
    most = [f"{visible(part.name)} ({share(part.evidence.get('updates_lost', 0.0))})" for part in finding.parts[:3]]
    return f"most in {', '.join(most)}"


def cost(finding: Finding, ranks: int) -> str:
    """What the fix adds in memory; empty where nothing is known to be added."""
    return f"+{size(finding.cost_bytes)}{'/rank' if ranks > 1 else ''}" if finding.cost_bytes else ""


def mending(report: Report) -> list[str]:
    """What all fixes together add in memory, as one line; none where nothing is known to be added."""
    added = sum(finding.cost_bytes or 0 for finding in loud(report) if not finding.because)
    each = "/rank" if report.coverage.ranks > 1 else ""
    return [f"mending it takes +{size(added)}{each} of memory"] if added else []


def memory(report: Report) -> str:
    """The heading over the bytes of a role."""
    return "size" if report.command == "checkpoint" else "memory/rank" if report.coverage.ranks > 1 else "memory"


def loud(report: Report, verbosity: int = 0) -> list[Finding]:
    """The findings a person is shown, worst first: neither suppressed ones, nor notes unless asked for."""
    shown = [f for f in report.findings if not f.suppressed and (f.severity is not Severity.NOTE or verbosity > 0)]
    return sorted(shown, key=lambda f: -f.severity.rank)


def allowed(report: Report) -> list[Finding]:
    """The findings that the contract in pyproject.toml allows: told in every format, and counted in none."""
    return [finding for finding in report.findings if finding.because]


def excuse(finding: Finding) -> str:
    """`optimizer state is bfloat16: allowed, because 8 GB card, measured (pyproject.toml, until 2027-01-31)`."""
    return f"{visible(finding.message)}: allowed, because {visible(finding.because)}"


def count_of(report: Report, severity: Severity) -> int:
    return sum(1 for f in report.findings if f.severity is severity and not f.suppressed)


def opening(report: Report) -> list[str]:
    """The parts of the line a report opens with: versions, set-up, ranks, steps or files."""
    setup = dict(report.coverage.setup)
    parts = [*preflight(report), f"precaudit {report.tool.version}"]
    if version := setup.pop("torch", ""):
        parts.append(f"torch {version}")
    autocast = setup.pop("autocast", "")
    named = [setup.pop("frameworks", ""), autocast and f"autocast({autocast})", setup.pop("optimizer", "")]
    if what := ", ".join(name for name in named if name):
        parts.append(what)
    if device := setup.pop("device", ""):
        parts.append(f"on {device}")
    parts.extend(f"{key.replace('_', ' ')} {value}" for key, value in setup.items() if value)
    cover = report.coverage
    if cover.ranks > 1:
        differ = any(f.rule == "PA505" and not f.suppressed for f in report.findings)
        parts.append(f"{cover.ranks} ranks {'differ' if differ else 'agree'}")
    if cover.steps or report.command in ("trace", "audit", "snapshot"):
        parts.append(_steps(report))
    if report.command in ("check", "audit", "checkpoint"):
        parts.append(plural(cover.files, "file"))
    return [visible(part) for part in parts]


LASTING = {"master_weight": "master weights", "gradient": "gradients", "optimizer_state": "optimizer state"}
"""What a rank holds from step to step, whatever its activations take."""


def preflight(report: Report) -> list[str]:
    """What of a run without a GPU is real, in parts; nothing where there was one, or none was needed."""
    if report.preflight is None:
        return []
    told = report.preflight
    numbers = "values are the CPU's" if told.values == "cpu" else "no values: sizes and dtypes only"
    where = f"as one of {told.ranks:,} ranks, each on one" if told.ranks > 1 else "as on one"
    held = {words: sum(row.bytes for row in report.roles if row.role == role) for role, words in LASTING.items()}
    total = sum(held.values())
    if told.values == "cpu" or not total:
        return [f"preflight: CUDA's dtypes on a CPU; {numbers}", f"{where} {told.device_name}"]
    parts = ", ".join(f"{words} {size(count)}" for words, count in held.items() if count)
    verdict = "more than its" if total > told.memory else f"{total / told.memory:.2g} of its"
    memory = f"{parts}: {size(total)}, {verdict} {size(told.memory)}"
    return [f"preflight: CUDA's dtypes on a CPU; {numbers}", f"{where} {told.device_name}", memory]


def _steps(report: Report) -> str:
    cover = report.coverage
    if not cover.steps and not cover.traced_steps:
        return "no step was watched"
    traced = cover.traced_steps
    if not traced:
        text = plural(cover.steps, "optimizer step")
    elif len(traced) == 1:
        text = f"optimizer step {traced[0]}"
    elif traced == list(range(traced[0], traced[-1] + 1)):
        text = f"optimizer steps {traced[0]}-{traced[-1]}"
    else:
        text = f"optimizer steps {', '.join(map(str, traced))}"
    more = [plural(cover.micro_batches, "micro-batch")] if cover.micro_batches else []
    if cover.skipped_steps:
        more.append(f"{cover.skipped_steps} skipped")
    return f"{text} ({', '.join(more)})" if more else text


def verdict(report: Report) -> str:
    """The whole report in one clause: what was found, or why nothing can be said."""
    counts = (
        f"{plural(count_of(report, Severity.ERROR), 'error')}, {plural(count_of(report, Severity.WARNING), 'warning')}"
    )
    found = bool(count_of(report, Severity.ERROR) or count_of(report, Severity.WARNING))
    if report.status == "inconclusive":
        if report.command == "check" and report.coverage.files:
            unread = "not everything could be read; in the rest "
            return f"inconclusive: {unread}{counts if found else NOTHING}"
        if report.command == "snapshot":
            return (
                f"inconclusive: without a step not everything can be told; of the rest {counts if found else NOTHING}"
            )
        if any(row.verdict != "not-observed" for row in report.roles):
            until = "the run ended before the traced steps were over; until then "
            return f"inconclusive: {until}{counts if found else NOTHING}"
        what = "examined" if report.command in ("check", "checkpoint") else "observed"
        return f"inconclusive: nothing was {what}, so this says nothing about the precision"
    if report.status == "script-failed":
        code = "" if report.exit_code is None else f" with exit code {report.exit_code}"
        observed = found or report.coverage.steps or any(row.verdict != "not-observed" for row in report.roles)
        until = f"until then: {counts}" if observed else "nothing was observed until then"
        return f"the traced command failed{code}; {until}"
    return counts if found else NOTHING


def closing(report: Report, verbosity: int = 0, show_again: str | None = None) -> list[str]:
    """The parts of the last line: the verdict, what was looked at, what is not shown, the next useful command."""
    parts = [verdict(report)]
    notes = count_of(report, Severity.NOTE)
    if notes:
        parts.append(
            plural(notes, "note") + ("" if verbosity > 0 else " (-v shows them)" if notes > 1 else " (-v shows it)")
        )
    if given := len(allowed(report)):
        parts.append(f"{given} allowed")
    if hidden := sum(1 for f in report.findings if f.suppressed and not f.because):
        parts.append(f"{hidden} suppressed")
    parts += [f"{count} {HIDDEN.get(name, name)}" for name, count in report.coverage.hidden.items() if count]
    if fixable := sum(1 for f in report.findings if f.fixable and not f.suppressed):
        parts.append(f"{fixable} fixable with --fix")
    observed = {row.role for row in report.roles if row.verdict != "not-observed"}
    if report.command != "check" and observed:
        looked = plural(len(observed), "role")
        parts.append(
            f"{looked}, {plural(report.coverage.parameters, 'parameter')}" if report.coverage.parameters else looked
        )
    elif report.command == "check":
        parts.append(plural(report.coverage.files, "file"))
    if step := next_command(report, show_again):
        parts.append(f"next: {step}")
    return parts


def next_command(report: Report, show_again: str | None = None) -> str:
    """The command that is most useful after this report; empty where there is none to suggest."""
    shown = loud(report)
    if report.command in ("check", "snapshot"):
        return f"precaudit rules {shown[0].rule}" if shown else "precaudit trace <your training command>"
    if report.command == "trace" and report.status in ("clean", "findings", "inconclusive") and report.roles:
        return SHOW_AGAIN if show_again is None else show_again
    return f"precaudit rules {shown[0].rule}" if shown else ""


def compiled(report: Report) -> str:
    """How much of the traced steps ran compiled, and what kind of evidence that is; empty where nothing did."""
    ran = report.coverage.compiled
    if not ran:
        return ""
    regions = plural(int(ran.get("regions", 0)), "region")
    return (
        f"{regions}, {ran.get('share', 0.0):.0%} of the forward operations: their dtypes are read off the compiled "
        "graphs (graph-level), not off the run"
    ).replace("%", " %")


def overhead(report: Report) -> list[str]:
    """What the trace itself cost, in words; of an unknown measure the name's ending gives the unit."""
    measured = dict(report.coverage.overhead)
    told = []
    traced, untraced = measured.pop("step_s_traced", 0.0), measured.pop("step_s_untraced", 0.0)
    if traced:
        told.append(f"a traced step took {duration(traced)}")
        if untraced:
            told[0] += f", an untraced one {duration(untraced)} ({traced / untraced:.1f} times)"
        else:
            first = report.coverage.traced_steps[:1]
            told[0] += ", no untraced one was measured" + (" (--skip 2 does)" if first in ([1], [2]) else "")
    return [*told, *(visible(_measure(name, value)) for name, value in measured.items())]


def duration(seconds: float) -> str:
    """Seconds for people: "34 ms", "2.31 s"."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * factor >= 1 or unit == "µs":
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds:g} s"


def _measure(name: str, value: float) -> str:
    stem, _, unit = name.rpartition("_")
    stem = stem.replace("_", " ")
    if stem and unit == "bytes":
        return f"{stem} {size(int(value))}"
    if stem and unit == "s":
        return f"{stem} {duration(value)}"
    return f"{name.replace('_', ' ')} {value:.3g}"


def opening_sentences(text: str) -> str:
    """A rule's why in short: its first sentences up to a number, on one line."""
    flat = " ".join(text.split())
    for end, char in enumerate(flat):
        ends = char in ".?!" and flat[end + 1 : end + 2] == " "
        if ends and end >= ENOUGH and any(c.isdigit() for c in NAMES.sub("", flat[:end])):
            return flat[: end + 1]
    return flat


def one_line(parts: Iterable[str]) -> str:
    return " · ".join(part for part in parts if part)
