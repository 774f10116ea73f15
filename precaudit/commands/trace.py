"""`precaudit trace`: runs a training command unmodified, watches a few steps, prints and writes the report."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from precaudit.errors import OutputError, UsageError

if TYPE_CHECKING:
    from precaudit.model.wire import Report


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    options_metavar="[OPTIONS]",
)
@click.option("--skip", type=click.IntRange(0), default=1, show_default=True, help="Steps to let pass before tracing.")
@click.option("--steps", type=click.IntRange(1), default=2, show_default=True, help="Steps to trace.")
@click.option("--keep-going", is_flag=True, help="Let the command run on, untraced, after the traced steps.")
@click.option("--output", type=click.Path(path_type=Path), metavar="FILE", help="Also write the JSON report here.")
@click.option("--output-format", default="text", metavar="FORMAT", help="Of the report on stderr.  [default: text]")
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
@click.option("--timeout", type=click.FloatRange(0, min_open=True), metavar="SECONDS", help="End the command then.")
@click.option("--no-inject", is_flag=True, help="Leave PYTHONPATH alone: the command itself runs precaudit.run.")
@click.option("-q", "--quiet", is_flag=True, help="Only the findings.")
@click.option("-v", "--verbose", count=True, help="Also notes and details.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def trace(
    skip: int,
    steps: int,
    keep_going: bool,
    output: Path | None,
    output_format: str,
    fail_on: str,
    select: tuple[str, ...],
    ignore: tuple[str, ...],
    only: tuple[str, ...],
    values: str,
    timeout: float | None,
    no_inject: bool,
    quiet: bool,
    verbose: int,
    command: tuple[str, ...],
) -> int:
    """Trace COMMAND, a training script or whatever starts one.

    \b
    precaudit trace train.py --lr 1e-4
    precaudit trace -m pkg.train
    precaudit trace torchrun --nproc-per-node 2 train.py
    """
    from precaudit import rulebook
    from precaudit.launch.bootstrap import Settings
    from precaudit.launch.command import resolve
    from precaudit.launch.save import check_writable, write_atomically, write_latest
    from precaudit.launch.trace import Choice, trace_command

    resolved = resolve(command, os.environ)
    if os.environ.get("PRECAUDIT_DISABLE") == "1":
        _say("PRECAUDIT_DISABLE=1: running untraced")
        return subprocess.run(resolved.argv, check=False).returncode % 256
    if output is not None:
        check_writable(output)
    book = rulebook.load()
    chosen = book.select(_listed(select)) if select else set(book.rules)
    chosen -= book.select(_listed(ignore))
    traced = trace_command(
        resolved,
        Settings(cwd=os.getcwd(), skip=skip, steps=steps, keep_going=keep_going, values=values),
        Choice(frozenset(chosen), _roles(_listed(only)), fail_on),
        book,
        os.environ,
        timeout=timeout,
        inject=not no_inject,
        announce=_say,
    )
    text = traced.report.model_dump_json(indent=1) + "\n"
    failures = []
    try:
        write_latest(text)
    except OutputError as error:
        # The report on the screen and --output still tell everything, so this alone does not fail the run.
        _say(str(error))
    if output is not None:
        try:
            write_atomically(output, text)
        except OutputError as error:
            failures.append(error)
    show(traced.report, output_format, verbosity=-1 if quiet else verbose)
    if traced.verdict.line:
        _say(traced.verdict.line)
    if failures:
        raise failures[0]
    return traced.verdict.exit_code


def show(report: Report, output_format: str, verbosity: int) -> None:
    """Prints the report on stderr: stdout belongs to the traced command."""
    for finding in report.findings:
        _say(f"{finding.path}:{finding.line}: {finding.severity.value} {finding.rule} {finding.message}")
    _say(f"{report.status}: {len(report.findings)} findings")


def _say(line: str) -> None:
    print(f"precaudit: {line}", file=sys.stderr, flush=True)


def _listed(values: tuple[str, ...]) -> list[str]:
    """`--select PA1,PA3 --select PA5` is three words."""
    return [word for value in values for word in value.replace(",", " ").split()]


def _roles(names: list[str]) -> frozenset[str]:
    import difflib

    from precaudit.model.vocabulary import Role

    known = [role.value for role in Role]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"roles: {', '.join(known)}"
            raise UsageError(f"--only: '{name}' is not a role; {hint}")
    return frozenset(names)
