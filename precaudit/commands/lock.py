"""`precaudit lock`: runs a training command, watches a few steps, and writes down the precision it is held to."""

from __future__ import annotations

import os
from pathlib import Path

import click

from precaudit import settings as settings_module
from precaudit.commands.output import say
from precaudit.commands.trace import Count


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    short_help="Write down the precision of a training, to hold later runs to.",
)
@click.option("--lock", "path", type=click.Path(path_type=Path), default=Path("precision.lock"), show_default=True,
              metavar="FILE", help="Where it is written.")  # fmt: skip
@click.option("--skip", type=Count(0), metavar="N", default=1, show_default=True, help="Steps to let pass before.")
@click.option("--steps", type=Count(1), metavar="N", default=2, show_default=True, help="Steps to watch.")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), metavar="SECONDS", help="End the command then.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="COMMAND [ARGS]...")
def lock(path: Path, skip: int, steps: int, timeout: float | None, command: tuple[str, ...]) -> int:
    """Run COMMAND for a few steps and write precision.lock: what every role and tensor held.

    \b
    precaudit lock train.py --lr 1e-4
    precaudit trace --locked train.py --lr 1e-4
    """
    from precaudit import rulebook
    from precaudit.allowed.read import contract_of
    from precaudit.contracts import hold
    from precaudit.launch.bootstrap import TraceSettings
    from precaudit.launch.command import resolve
    from precaudit.launch.save import check_writable
    from precaudit.launch.trace import Choice, trace_command
    from precaudit.launch.verdict import INCONCLUSIVE

    resolved = resolve(command, os.environ)
    check_writable(path)
    book = rulebook.load()
    settings = TraceSettings(cwd=os.getcwd(), skip=skip, steps=steps, values="off")
    contract = contract_of(settings_module.load(), book)
    choice = Choice(rules=frozenset(book.rules), fail_on="never", contract=contract)
    traced = trace_command(resolved, settings, choice, book, os.environ, timeout=timeout, announce=say)
    report = traced.report
    if not hold.seen_enough(report):
        say(f"{path}: not written; {traced.verdict.line or f'{resolved.shown} was not watched to the end'}")
        return traced.verdict.exit_code or INCONCLUSIVE
    existed = path.exists()
    changes = hold.renew(path, report)
    if existed and changes:
        print(changes)
    done = "written" if not existed else "renewed" if changes else "unchanged"
    roles = len({row.role for row in report.roles if row.dtype is not None})
    say(f"{path}: {done}: {roles} roles, {len(report.inventory)} names; hold runs to it with: precaudit trace --locked")
    wrong = [finding for finding in report.findings if finding.severity.value == "error" and not finding.suppressed]
    if wrong:
        errors = f"{len(wrong)} error{'s' if len(wrong) > 1 else ''}"
        say(f"{path}: this run has {errors}, and the lock holds later runs to the same; see them with: precaudit trace")
    return 0
