"""`precaudit trace`: runs a training command unmodified, watches a few steps, prints and writes the report."""

from __future__ import annotations

import difflib
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from precaudit import settings as settings_module
from precaudit.commands.output import chosen_rules, format_of, print_report, say, send, tell_github, trackers
from precaudit.errors import ConfigError, OutputError, PrecauditError, UsageError

if TYPE_CHECKING:
    from precaudit.contracts.drift import Comparison
    from precaudit.contracts.hold import Lock
    from precaudit.launch.trace import Choice, Traced
    from precaudit.model.wire import Report


class Count(click.IntRange):
    """A number of steps."""

    name = "whole number"


class StepNumbers(click.ParamType):  # type: ignore[type-arg]
    """Numbers of steps: "1000,5000"."""

    name = "steps"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        words = value if isinstance(value, list) else str(value).split(",")
        if not all(str(word).strip().isdigit() and int(word) > 0 for word in words):
            self.fail(f"'{value}' are no step numbers; write them as in --at 1000,5000", param, context)
        return tuple(sorted({int(word) for word in words}))


class Bytes(click.ParamType):  # type: ignore[type-arg]
    """An amount of memory: "500MB", "2GB", "1.5GiB"."""

    name = "memory"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT])(i?)B?", str(value).strip(), re.IGNORECASE)
        if found is None or not float(found[1]):
            self.fail(f"'{value}' is no amount of memory; write it as in --exact-memory 2GB", param, context)
        return int(float(found[1]) * (1024 if found[3] else 1000) ** ("KMGT".index(found[2].upper()) + 1))


class ConfiguredCommand(click.Command):
    """Takes its defaults from `[tool.precaudit]` and `[tool.precaudit.trace]` of the nearest pyproject.toml."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        extra["default_map"] = self._defaults(settings_module.load())
        return super().make_context(info_name, args, parent, **extra)

    def _defaults(self, settings: settings_module.Settings) -> dict[str, Any]:
        defaults: dict[str, Any] = {"fail_on": settings.fail_on, "select": settings.select, "ignore": settings.ignore}
        known = [p.name for p in self.params if isinstance(p, click.Option) and p.name]
        for key, value in settings.trace.items():
            name = key.replace("-", "_")
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                spelled = [k.replace("_", "-") for k in near or known]
                hint = f"did you mean '{spelled[0]}'?" if near else f"keys: {', '.join(spelled)}"
                raise ConfigError(f"pyproject.toml: [tool.precaudit.trace] {key}: unknown key; {hint}")
            defaults[name] = value
        return defaults


@click.command(
    cls=ConfiguredCommand,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    short_help="Run a training command and report its precision.",
)
@click.option(
    "--skip", type=Count(0), metavar="N", default=1, show_default=True, help="Steps to let pass before tracing."
)
@click.option("--steps", type=Count(1), metavar="N", default=2, show_default=True, help="Steps to trace.")
@click.option("--at", type=StepNumbers(), metavar="N,M", default=(), help="Trace two steps from each of these on, too.")
@click.option("--keep-going", is_flag=True, help="Let the command run on after them, untraced.")
@click.option("--watch", is_flag=True, help="Let it run on, and look again where something new begins.")
@click.option("--eager", is_flag=True, help="Turn torch.compile off, to see each operation of compiled regions.")
@click.option("--exact", is_flag=True, help="Compute one step in float64 beside itself: what did it lose, and where?")
@click.option("--exact-module", "exact_modules", multiple=True, metavar="GLOB",
              help="Of that step only these modules, as blocks.3 or 'blocks.*.attn'.")  # fmt: skip
@click.option("--exact-memory", type=Bytes(), metavar="LIMIT", default=0,
              help="Memory for it, as 2GB: the worst modules that fit, in a second step.")  # fmt: skip
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Also write the report here: in --output-format, else as the name's ending says, else JSON.",
)
@click.option("--output-format", metavar="FORMAT", help="Of --output, or of the report on stderr.  [default: text]")
@click.option("--output-dir", metavar="FOLDER", help="Keep reports here.  [default: .precaudit]")
@click.option("--log", "logs", multiple=True, metavar="TRACKER", callback=trackers,
              help="Send its values to wandb, mlflow, tensorboard, trackio or jsonl.")  # fmt: skip
@click.option(
    "--fail-on",
    type=click.Choice(["error", "warning", "note", "never"]),
    default="error",
    show_default=True,
    help="Exit with 1 from this severity on.",
)
@click.option("--select", multiple=True, metavar="RULES", help="Only these rules: ids, names or prefixes (PA3).")
@click.option("--ignore", multiple=True, metavar="RULES", help="Not these rules.")
@click.option("--only", multiple=True, metavar="ROLE", help="Only findings about this role, such as optimizer_state.")
@click.option("--values", type=click.Choice(["off", "sample", "full"]), default="sample", show_default=True,
              help="How much of each tensor is read for evidence.")  # fmt: skip
@click.option("--locked", is_flag=True, help="Fail where the run differs from its precision.lock.")
@click.option("--lock", "lock_path", type=click.Path(path_type=Path), metavar="FILE",
              help="The lock it is held to.  [default: precision.lock]")  # fmt: skip
@click.option("--update-lock", is_flag=True, help="Write the lock anew, and show what changed.")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), metavar="SECONDS", help="End the command then.")
@click.option("--verify-undisturbed", is_flag=True,
              help="Run it again untraced, and compare all that it computes bit by bit.")  # fmt: skip
@click.option("--no-inject", is_flag=True, help="Leave PYTHONPATH alone: the command itself runs precaudit.run.")
@click.option("-q", "--quiet", is_flag=True, help="Only the findings.")
@click.option("-v", "--verbose", count=True, help="Also notes and details.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="COMMAND [ARGS]...")
def trace(
    skip: int,
    steps: int,
    at: tuple[int, ...],
    keep_going: bool,
    watch: bool,
    eager: bool,
    exact: bool,
    exact_modules: tuple[str, ...],
    exact_memory: int,
    output: Path | None,
    output_format: str | None,
    output_dir: str | None,
    logs: tuple[str, ...],
    fail_on: str,
    select: tuple[str, ...],
    ignore: tuple[str, ...],
    only: tuple[str, ...],
    values: str,
    locked: bool,
    lock_path: Path | None,
    update_lock: bool,
    timeout: float | None,
    verify_undisturbed: bool,
    no_inject: bool,
    quiet: bool,
    verbose: int,
    command: tuple[str, ...],
    preflight: dict[str, Any] | None = None,
    what_if: tuple[str, ...] = (),
    stochastic: bool = False,
    events: bool = False,
    amend: Callable[[Traced, Choice], Traced] | None = None,
) -> int:
    """Run COMMAND, a training script or what starts one, and report its precision.

    \b
    precaudit trace train.py --lr 1e-4
    precaudit trace -m pkg.train
    precaudit trace torchrun --nproc-per-node 2 train.py
    """
    from precaudit import rulebook
    from precaudit.allowed.read import contract_of
    from precaudit.launch import identity
    from precaudit.launch.bootstrap import TraceSettings
    from precaudit.launch.child import run_command
    from precaudit.launch.command import resolve
    from precaudit.launch.journal import Journal
    from precaudit.launch.progress import can_show
    from precaudit.launch.runs import abandoned, run_folder
    from precaudit.launch.save import HOME, check_home, check_writable, write_named
    from precaudit.launch.trace import Choice, trace_command
    from precaudit.report import render

    resolved = resolve(command, os.environ)
    if os.environ.get("PRECAUDIT_DISABLE") == "1":
        say("PRECAUDIT_DISABLE=1: running untraced")
        return run_command(resolved.argv, os.environ).code
    shape = format_of(output, output_format, "text" if output is None else "json")
    if output is not None:
        check_writable(output)
    lock = None
    if locked or lock_path or update_lock:
        from precaudit.contracts import hold, lockfile

        lock = hold.before(lock_path or Path(lockfile.NAME), resolved.argv, update_lock)
    book = rulebook.load()
    configured = settings_module.load()
    choice = Choice(
        rules=chosen_rules(book, select, ignore, configured.extend_select),
        roles=_roles(only),
        fail_on=fail_on,
        per_file_ignores=configured.per_file_ignores,
        root=configured.root.resolve(),
        contract=contract_of(configured, book),
    )
    home = Path(output_dir or configured.output_dir or HOME)
    for line in (*map(str, abandoned(home)[:1]), hindered := check_home(home, os.environ)):
        if line:
            say(line)
    wanted = TraceSettings(
        cwd=os.getcwd(),
        skip=skip,
        steps=steps,
        keep_going=keep_going or watch,
        looks_on=watch,
        at=at,
        values=values,
        eager=eager,
        exact=exact or bool(exact_modules or exact_memory),
        exact_modules=exact_modules,
        exact_memory=exact_memory,
        what_if=what_if,
        stochastic=stochastic,
        record=verify_undisturbed,
        preflight=preflight,
    )
    started = identity.begin(resolved.argv, os.getcwd())
    kept = nullcontext() if hindered else run_folder(home, wanted, resolved.shown, started, configured.keep_runs)
    with kept as folder:
        journal = Journal(folder.tell) if events and folder is not None else None
        if folder is not None:
            folder.begin_events(bool(journal))
        if journal is not None:
            journal.began(started)

        told: list[str] = []

        def so_far(report: Report) -> None:
            if not quiet:
                _tell_so_far(report, told)
            if folder is not None:
                folder.write(_as_json(report))
            if journal is not None:
                journal.take(report)

        traced = trace_command(
            resolved,
            replace(wanted, ranks_folder=str(folder.path.absolute()) if folder else ""),
            choice,
            book,
            os.environ,
            timeout=timeout,
            inject=not no_inject,
            announce=say,
            so_far=None if hindered else so_far,
            started=started,
            terminal=sys.stderr.fileno() if not quiet and can_show(sys.stderr, os.environ) else None,
        )
        if amend is not None:
            traced = amend(traced, choice)
        compared = hold.after(lock, traced.report) if lock is not None else None
        if compared is not None:
            traced.report.drift = [str(change) for change in compared.changes]
        text = _as_json(traced.report)
        failures: list[PrecauditError] = []
        show_again = f"precaudit report --output-dir {shlex.quote(output_dir)} --open" if output_dir else None
        try:
            if folder is None:
                show_again = ""
            else:
                folder.write(text)
            if journal is not None:
                journal.ended(traced.report, traced.verdict.exit_code)
        except OutputError as error:
            # The report on the screen and --output still tell everything, so this alone does not fail the run.
            say(str(error))
            show_again = ""
    if output is not None:
        try:
            write_named(output, text if shape == "json" else render(traced.report, shape, width=100))
        except OutputError as error:
            failures.append(error)
    _show(traced, resolved.shown, shape if output is None else "text", -1 if quiet else verbose, show_again)
    tell_github(traced.report, verbose, annotate=output is not None or shape != "github")
    failures += send(traced.report, logs)
    if failures:
        raise failures[0]
    if lock is None or compared is None:
        return traced.verdict.exit_code
    return _held(lock, compared, traced, update_lock)


def _tell_so_far(report: Report, told: list[str]) -> None:
    """One line on what was seen by now of a command that runs on, each time that there is something new to say."""
    from precaudit.report.headline import headline
    from precaudit.report.roles import rows

    if (line := headline(report, rows(report))) not in told:
        told.append(line)
        print(file=sys.stderr)  # the command may have left half a line there
        say(f"steps {_listed(report.coverage.traced_steps)} were watched: {line}; it runs on (now: precaudit report)")


def _listed(steps: list[int]) -> str:
    return " and ".join(filter(None, [", ".join(map(str, steps[:-1])), *map(str, steps[-1:])]))


def _as_json(report: Report) -> str:
    return report.model_dump_json(indent=1) + "\n"


def _held(lock: Lock, compared: Comparison, traced: Traced, update: bool) -> int:
    """Says what the run does otherwise than its lock, or renews the lock; the exit code."""
    from precaudit.contracts import hold
    from precaudit.launch.verdict import FINDINGS

    code = traced.verdict.exit_code
    if not hold.seen_enough(traced.report):
        say(f"{lock.path}: not compared: the run was not watched to the end of its window")
        return code
    if update:
        changes = hold.renew(lock.path, traced.report)
        say(f"{lock.path}: {'renewed' if changes else 'unchanged'}{':' if changes else ''}")
        if changes:
            print(changes, file=sys.stderr)
        return code
    apart = [f"  not compared: {line}" for line in compared.left_out]
    if not compared.changes:
        say("\n".join([f"{lock.path}: holds", *apart]))
        return code
    count = len(compared.changes)
    say(f"{lock.path}: this run differs from its lock in {count} place{'s' if count > 1 else ''}:")
    for change in compared.changes:
        print(f"  {change}", file=sys.stderr)
    for version in compared.versions:
        print(f"  since the lock was written: {version}", file=sys.stderr)
    for line in apart:
        print(line, file=sys.stderr)
    print("  where that is meant, accept it with --update-lock", file=sys.stderr)
    return code or FINDINGS


def _show(traced: Traced, command: str, output_format: str, verbosity: int, show_again: str | None) -> None:
    """Prints the report on stderr, since stdout is the command's, and last the line that says what went wrong.

    Where nothing was observed that line is all there is to say: a table of "not observed" would bury it.
    """
    report, line = traced.report, traced.verdict.line
    if report.facts or output_format != "text" or not line:
        notes = [note for note in report.coverage.notes if note not in (line, traced.verified)]
        coverage = report.coverage.model_copy(update={"notes": notes})
        shown = report if output_format != "text" else report.model_copy(update={"coverage": coverage})
        if output_format == "text":
            # The command may have left the cursor behind a progress bar.
            print(file=sys.stderr)
        print_report(shown, output_format, sys.stderr, verbosity, show_again)
    if traced.verified:
        say(traced.verified)
    if line:
        say(line)
    elif report.coverage.stopped and verbosity >= 0:
        last = report.coverage.traced_steps[-1:]
        after = f" after step {last[0]}" if last else ""
        say(f"{command} was stopped on purpose{after}: nothing later ran, no checkpoint was saved by it")


def _roles(values: Iterable[str]) -> frozenset[str]:
    """The roles that --only names, as reports show them ("optimizer state") or as JSON spells them."""
    from precaudit import rulebook
    from precaudit.model.vocabulary import Role

    table = rulebook.load().roles
    shown = {role: table[role].label if role in table else role.value.replace("_", " ") for role in Role}
    known = {_plain(spelling): role.value for role in Role for spelling in (shown[role], role.value)}
    chosen = set()
    for value in values:
        for name in (part.strip() for part in value.split(",") if part.strip()):
            # Several roles may stand in one value, set apart by spaces, if it is not the name of one.
            for word in [name] if _plain(name) in known else name.split():
                if _plain(word) not in known:
                    near = difflib.get_close_matches(_plain(name), known, n=1)
                    meant = known[near[0]] if near and "_" in name else near[0] if near else ""
                    hint = f"did you mean '{meant}'?" if near else f"roles: {', '.join(shown.values())}"
                    raise UsageError(f"--only: '{name}' is not a role; {hint}")
                chosen.add(known[_plain(word)])
    return frozenset(chosen)


def _plain(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").replace("-", " ").split())
