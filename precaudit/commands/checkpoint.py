"""`precaudit checkpoint`: reads checkpoint files, runs nothing of what is in them."""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from precaudit import settings as settings_module
from precaudit.commands.output import WITH_RUN, chosen_rules, format_of, print_report, say, tell_github

if TYPE_CHECKING:
    from precaudit.allowed.contract import Contract
    from precaudit.checkpoint.run import Examined
    from precaudit.model.wire import Report
    from precaudit.rulebook import Rulebook

EXIT_CLEAN, EXIT_FINDINGS, EXIT_INCONCLUSIVE = 0, 1, 5
ALWAYS = {
    "master_weight": "no optimizer in this checkpoint, so nothing says which weights are trained",
    "optimizer_state": "no optimizer state was saved",
    "loss_scale": "no GradScaler state in this checkpoint",
}
"""Roles that are shown where nothing of them is in the checkpoint too, and what to say then."""


@click.command(short_help="Report the dtypes and broken values of saved checkpoints.")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--select", multiple=True, metavar="RULES", help="Only these rules: ids, names or prefixes (PA6).")
@click.option("--ignore", multiple=True, metavar="RULES", help="Not these rules.")
@click.option(
    "--fail-on",
    type=click.Choice(settings_module.SEVERITIES),
    default="error",
    show_default=True,
    help="Exit with 1 from this severity on.",
)
@click.option("--exit-zero", is_flag=True, help="Exit 0 even with findings.")
@click.option("--output-format", metavar="FORMAT", help="How to show it.  [default: text]")
@click.option("--output", type=click.Path(path_type=Path), metavar="FILE", help="Write the report to this file.")
@click.option(
    "--values",
    type=click.Choice(("full", "sampled")),
    default="full",
    show_default=True,
    help="Look for NaN, inf and the like in all values, or in 65,536 of each tensor.",
)
@click.option("-v", "--verbose", "--notes", count=True, help="Also notes and details.")
def checkpoint(paths: tuple[str, ...], output: Path | None, output_format: str | None, **given: Any) -> int:
    """Report dtypes and values of checkpoints: roles by name, NaN, weights that never moved, float32 that is hollow.

    Reads safetensors, torch.save's files, torch.distributed.checkpoint, and the folders of DeepSpeed, HF Trainer,
    accelerate, Lightning and PEFT. No pickle is ever executed, and torch need not be installed.

    \b
    precaudit checkpoint output/checkpoint-500
    """
    from precaudit import rulebook
    from precaudit.allowed.read import contract_of
    from precaudit.checkpoint.run import examine
    from precaudit.launch.identity import begin
    from precaudit.launch.save import check_writable, write_named
    from precaudit.launch.verdict import reaches

    began = time.time()
    shape = format_of(output, output_format, "text")
    if output is not None:
        check_writable(output)
    book = rulebook.load()
    chosen = chosen_rules(book, given["select"], given["ignore"])
    found = examine(paths, whole=given["values"] == "full")
    for line in found.skipped:
        say(line)
    report = build(found, chosen, book, contract_of(settings_module.load(), book))
    if shape in WITH_RUN:
        report.run = begin(began=began).ended()
    text = io.StringIO()
    if not found.files and shape == "text":
        pass
    elif output is None:
        print_report(report, shape, sys.stdout, verbosity=given["verbose"])
    else:
        print_report(report, shape, text, verbosity=given["verbose"])
        write_named(output, text.getvalue())
    if not found.files:
        say("nothing was examined: no checkpoint here that can be read")
        return EXIT_INCONCLUSIVE
    if report.status == "inconclusive":
        say("nothing was examined: what could be read here holds no tensors; name the file or folder that does")
        return EXIT_INCONCLUSIVE
    tell_github(report, given["verbose"])
    return EXIT_FINDINGS if reaches(report.findings, given["fail_on"]) and not given["exit_zero"] else EXIT_CLEAN


def build(found: Examined, chosen: frozenset[str], book: Rulebook, contract: Contract | None = None) -> Report:
    """The Report of what was examined, judged by the chosen rules under a contract."""
    from precaudit import __version__, judge
    from precaudit.allowed.contract import NOTHING
    from precaudit.launch.verdict import loud
    from precaudit.model.wire import Coverage, Report, Tool
    from precaudit.report.words import plural, size

    under = (contract or NOTHING).of_run(found.held)
    facts = [*found.facts, *under.expired(Path.cwd())]
    findings = [f for f in judge.judge(facts, book, "checkpoint", allowed=under) if f.rule in chosen]
    rows = judge.role_table(found.facts, findings, book, witness="checkpoint")
    setup = {"frameworks": ", ".join(found.frameworks)} if found.frameworks else {}
    amount = f"{plural(found.tensors, 'tensor')}, {size(found.bytes)}"
    return Report(
        tool=Tool(version=__version__),
        command="checkpoint",
        status="inconclusive" if not (found.tensors or found.facts) else "findings" if loud(findings) else "clean",
        findings=findings,
        roles=[row for row in rows if row.verdict != "not-observed" or row.role in ALWAYS] if found.files else [],
        coverage=Coverage(
            files=found.files,
            skipped=found.skipped,
            setup={**setup, "holding": amount} if found.files else {},
            not_observed={row.role: ALWAYS[row.role] for row in rows if row.dtype is None and row.role in ALWAYS},
            notes=found.notes,
        ),
        facts=[fact.as_json() for fact in found.facts],
    )
