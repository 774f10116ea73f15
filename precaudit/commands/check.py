"""`precaudit check`: reads source and configs, runs nothing."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from precaudit import settings as settings_module
from precaudit.commands.output import WITH_RUN, format_of, say, tell_github
from precaudit.disk import write_named
from precaudit.errors import INTERNAL_ERROR, ConfigError, OutputError, UsageError
from precaudit.settings import Settings

if TYPE_CHECKING:
    from precaudit.model.wire import Finding, Report
    from precaudit.static.files.discovery import Discovery, Found

EXIT_CLEAN, EXIT_FINDINGS, EXIT_INCONCLUSIVE = 0, 1, 5
CLEAN = "no errors, no warnings · {count} · next: precaudit trace <your training command>"
"""What the text formats print for a clean run."""
Results = list[tuple["Found", dict[str, Any]]]


def _names(_: click.Context, __: click.Parameter, values: Sequence[str]) -> tuple[str, ...]:
    return tuple(part.strip() for value in values for part in value.split(",") if part.strip())


@click.command()
@click.argument("paths", nargs=-1, type=click.Path())
@click.option("--select", multiple=True, callback=_names, help="Only these rules: ids, names or prefixes such as PA3.")
@click.option("--extend-select", multiple=True, callback=_names, help="These rules as well.")
@click.option("--ignore", multiple=True, callback=_names, help="Not these rules.")
@click.option("--fail-on", type=click.Choice(settings_module.SEVERITIES), help="Least severity for exit code 1.")
@click.option("--exit-zero", is_flag=True, help="Exit 0 even with findings.")
@click.option("--output-format", help="text, concise, json, sarif, github, …; github is chosen under GitHub Actions.")
@click.option("--output", type=click.Path(), help="Write the report to this file.")
@click.option("--statistics", is_flag=True, help="Count findings per rule instead of listing them.")
@click.option("--show-files", is_flag=True, help="List the files that would be checked, and stop.")
@click.option("--notes", "-v", is_flag=True, help="Show notes too.")
@click.option("--baseline", type=click.Path(), help="Leave out what this baseline accepts.")
@click.option("--exclude", multiple=True, callback=_names, help=".gitignore patterns to leave out.")
@click.option("--config", type=click.Path(), help="A pyproject.toml to read instead of the nearest.")
@click.option("--no-cache", is_flag=True, help="Neither read nor write the cache.")
@click.option("--jobs", type=click.IntRange(0), default=0, help="Processes; 0 decides by the number of files.")
@click.option("--file-seconds", type=click.IntRange(1), default=10, show_default=True, help="CPU time of one file.")
@click.option(
    "--file-memory", type=click.IntRange(64), default=512, show_default=True, help="MB that one file may take."
)
@click.option("--stdin-filename", default="stdin.py", help="The path to report for '-'.")
@click.option("--diff", is_flag=True, help="Show what --fix would change.")
@click.option("--fix", is_flag=True, help="Apply the safe fixes.")
@click.option("--since", metavar="REF", help="Only findings on lines changed since this git revision.")
@click.option("--add-ignore", is_flag=True, help="Show the ignore comments that would silence today's findings.")
@click.option("--write", is_flag=True, help="With --add-ignore: put them into the files.")
@click.option(
    "--unsafe-fixes", is_flag=True, help="With --fix or --diff: also fixes that may change what the code means."
)
def check(paths: tuple[str, ...], **given: Any) -> None:
    """Find precision mistakes in training code and configs.

    \b
    precaudit check train.py configs/ --select PA3,PA202
    """
    config = Path(given["config"]) if given["config"] else None
    if config is not None and not config.is_file():
        raise ConfigError(f"{config}: no such file")
    settings = _merged(settings_module.load(config=config), given)
    names = paths or (".",)
    given["began"] = time.time()
    given["stdin"] = "-" in names
    if given["write"] and not given["add_ignore"]:
        raise UsageError("--write belongs to --add-ignore; fixes are written by --fix")
    if given["stdin"] and (given["fix"] or given["diff"]):
        raise UsageError("'-': --fix and --diff need a file, not standard input")
    if given["stdin"] and given["add_ignore"]:
        raise UsageError("'-': --add-ignore needs a file, not standard input")
    discovered, results = collect(names, settings, given)
    if not paths and os.environ.get("PRE_COMMIT"):
        # pre-commit runs a hook with always_run although no file matched.
        discovered = discovered._replace(barren=[], excluded=discovered.excluded + 1)
    if given["show_files"]:
        for item in discovered.found:
            click.echo(item.shown)
        sys.exit(EXIT_INCONCLUSIVE if discovered.barren else EXIT_CLEAN)
    if given["fix"] or given["diff"]:
        from precaudit.static.files.fixes import fix_files

        changed = fix_files(results, settings, write=given["fix"], unsafe=given["unsafe_fixes"])
        if given["diff"]:
            click.echo(changed.diff, nl=False)
            sys.exit(EXIT_FINDINGS if changed.diff and not given["exit_zero"] else EXIT_CLEAN)
        discovered, results = collect(names, settings, given)
        say(f"{changed.fixes} fixed")
        for line in changed.refused:
            say(line)
        if changed.refused:
            sys.exit(OutputError.exit_code)
    if given["add_ignore"]:
        sys.exit(_add_ignores(build(results, settings, len(results), [], since=given["since"]), settings, given))
    sys.exit(_report(discovered, results, settings, given))


def _add_ignores(report: Report, settings: Settings, given: dict[str, Any]) -> int:
    """Shows or writes the ignore comments that would silence what the report shows."""
    from precaudit.commands.ignores import add_ignores
    from precaudit.report import words

    shown = words.loud(report, 1 if settings.notes else 0)
    added = add_ignores(shown, write=given["write"])
    for line in added.refused:
        say(line)
    if given["write"]:
        say(f"{words.plural(added.comments, 'ignore comment')} added; say after each why")
        return OutputError.exit_code if added.refused else EXIT_CLEAN
    click.echo(added.diff, nl=False)
    say(f"{words.plural(added.comments, 'ignore comment')} to add; --write puts them into the files")
    return EXIT_FINDINGS if added.comments and not given["exit_zero"] else EXIT_CLEAN


def _merged(settings: Settings, given: dict[str, Any]) -> Settings:
    """The command line over what the environment and the file say."""
    changes: dict[str, Any] = {}
    for name in ("select", "extend_select", "ignore", "exclude", "fail_on", "baseline"):
        if given.get(name):
            changes[name] = tuple(given[name]) if isinstance(given[name], (list, tuple)) else given[name]
    if given.get("baseline"):
        # What the settings name counts from pyproject.toml, what is typed from here.
        changes["baseline"] = os.path.abspath(given["baseline"])
    if given.get("notes"):
        changes["notes"] = True
    if given.get("output_format"):
        changes["output_format"] = given["output_format"]
    return replace(settings, **changes)


def collect(names: Sequence[str], settings: Settings, given: Mapping[str, Any]) -> tuple[Discovery, Results]:
    """Finds and examines the files below these names, or standard input for "-"."""
    from precaudit.static.files.cache import FOLDER, Cache
    from precaudit.static.files.discovery import Discovery, Excluder, Found, discover
    from precaudit.static.files.run import examine, examine_all

    if "-" in names:
        if len(names) > 1:
            raise UsageError("'-' (standard input) stands alone; name no other path beside it")
        raw = sys.stdin.buffer.read()
        item = Found(os.path.abspath(given["stdin_filename"]), given["stdin_filename"])
        return Discovery([item], [], [], 0), [(item, examine(item, raw))]
    excluder = Excluder(settings.root.resolve(), settings.exclude, settings.respect_gitignore)
    discovered = discover(names, excluder)
    if given.get("show_files"):
        return discovered, []
    folder = None if given.get("no_cache") else Path(settings.cache_dir or settings.root / FOLDER)
    return discovered, examine_all(
        discovered.found,
        Cache(folder),
        given.get("jobs", 0),
        (given.get("file_seconds", 10), given.get("file_memory", 512)),
    )


def _report(discovered: Discovery, results: Results, settings: Settings, given: dict[str, Any]) -> int:
    """Prints the report and gives the exit code."""
    passed_over = [f"{item.shown}: {result['foreign']}" for item, result in results if "foreign" in result]
    unread = [line for item, result in results for line in unread_in(item, result)]
    for line in unread:
        say(line)
    skipped = [*discovered.skipped, *passed_over, *unread]
    for name in discovered.barren:
        say(f"{name}: nothing was examined: {_nothing_in(name)}")
    read = sum("error" not in result and "foreign" not in result for _, result in results)
    conclusive = bool(read or discovered.excluded) and not discovered.barren
    if read and conclusive and _certainly_clean(results, skipped, settings, given):
        click.echo(CLEAN.format(count=f"{read:,} file{'s' if read != 1 else ''}"))
        return EXIT_CLEAN
    report = build(results, settings, read, skipped, conclusive and not unread, given["since"])
    if report.findings and not given["stdin"]:
        from precaudit.static.files.fixes import mark_fixable

        mark_fixable(results, report.findings, settings)
    tell_github(report, 1 if settings.notes else 0)
    if given["statistics"]:
        _print_statistics(report)
    else:
        _print(report, settings, given, unread)
    threshold = {"error": 2, "warning": 1, "note": 0, "never": 99}[settings.fail_on]
    failing = [f for f in report.findings if not f.suppressed and f.severity.rank >= threshold]
    if any(result.get("internal") for _, result in results):
        return INTERNAL_ERROR
    if not given["exit_zero"] and (failing or (unread and read and settings.fail_on != "never")):
        return EXIT_FINDINGS
    return EXIT_CLEAN if conclusive else EXIT_INCONCLUSIVE


def unread_in(item: Found, result: dict[str, Any]) -> list[str]:
    """One line for a file that cannot be read, or for each cell of a notebook: where, and why."""
    cells = [f"{item.shown}:{line}" for line in result.get("unread", ())]
    if "error" not in result:
        return cells
    where = result["error"].removeprefix("not valid Python: ")
    position, _, reason = where.partition(": ")
    located = position.replace(":", "").isdigit()
    return [f"{item.shown}:{position}: not valid Python: {reason}" if located else f"{item.shown}: {where}"]


def _nothing_in(name: str) -> str:
    if os.path.isdir(name):
        return "no Python file or training config here"
    from precaudit.static.files.discovery import READ

    return f"neither Python nor a training config ({', '.join(READ)})"


def _certainly_clean(results: Results, skipped: list[str], settings: Settings, given: dict[str, Any]) -> bool:
    """Whether there is nothing to judge, so that neither rules nor report models need be loaded."""
    plain = settings.output_format in ("", "text", "concise") and os.environ.get("GITHUB_ACTIONS") != "true"
    named = settings.select or settings.extend_select or settings.ignore or settings.per_file_ignores
    if not plain or named or skipped or settings.notes or given["statistics"] or given["output"] or settings.baseline:
        return False
    if given["since"] or settings.allow or settings.contract:
        return False
    return not any(result.get("facts") or result.get("suppressions") for _, result in results)


def build(
    results: Results,
    settings: Settings,
    examined: int,
    skipped: list[str],
    conclusive: bool = True,
    since: str | None = None,
) -> Report:
    """The Report of these results under these settings; with `since` only of what changed from that revision on."""
    from precaudit import __version__
    from precaudit.model.wire import Coverage, Report, Severity, Tool
    from precaudit.static.findings import findings_of

    findings = findings_of(results, settings)
    hidden: dict[str, int] = {}
    if since:
        from precaudit.commands.since import changed_since, touched

        every, findings = findings, touched(findings, changed_since(since, Path.cwd()))
        hidden["unchanged"] = _loud(every) - _loud(findings)
    if settings.baseline:
        every, findings = findings, _outside_baseline(findings, settings)
        hidden["baseline"] = _loud(every) - _loud(findings)
    loud = [f for f in findings if not f.suppressed and f.severity is not Severity.NOTE]
    status: Any = "findings" if loud else "clean" if conclusive else "inconclusive"
    return Report(
        tool=Tool(version=__version__),
        command="check",
        status=status,
        findings=findings,
        coverage=Coverage(files=examined, skipped=skipped, hidden=hidden),
    )


def _loud(findings: Sequence[Finding]) -> int:
    """How many of them a report counts as errors or warnings."""
    return sum(1 for f in findings if not f.suppressed and f.severity.value != "note")


def _outside_baseline(findings: list[Finding], settings: Settings) -> list[Finding]:
    from precaudit import baseline

    path = settings.root / settings.baseline
    accepted = baseline.load(path)
    rows = zip(findings, baseline.entries(findings, path.resolve().parent), strict=True)
    return [finding for finding, entry in rows if entry.key not in accepted]


def _print(report: Report, settings: Settings, given: dict[str, Any], told: Sequence[str]) -> None:
    """Prints or writes the report; what was `told` on stderr is not said a second time on the same screen."""
    from precaudit.report import render

    default = "github" if os.environ.get("GITHUB_ACTIONS") == "true" else "text"
    output = Path(given["output"]) if given.get("output") else None
    shape = format_of(output, given.get("output_format"), settings.output_format or default)
    color = not given.get("output") and sys.stdout.isatty()
    if shape == "text" and not given.get("output"):
        left = [line for line in report.coverage.skipped if line not in told]
        report = report.model_copy(update={"coverage": report.coverage.model_copy(update={"skipped": left})})
    if shape in WITH_RUN:
        from precaudit.launch.identity import begin

        report = report.model_copy(update={"run": begin(began=given["began"]).ended()})
    text = render(report, shape, root=Path.cwd(), color=color, verbosity=1 if settings.notes else 0)
    if not given.get("output"):
        click.echo(text, nl=False, color=color)
        return
    try:
        write_named(Path(given["output"]), text)
    except OSError as error:
        raise OutputError(f"{given['output']}: cannot be written: {error.strerror}") from None


def _print_statistics(report: Report) -> None:
    counts = Counter((f.rule, f.name, f.severity.value) for f in report.findings if not f.suppressed)
    for (rule, name, severity), count in sorted(counts.items(), key=lambda row: (-row[1], row[0])):
        click.echo(f"{count:6}  {rule} {severity:7} {name}")
