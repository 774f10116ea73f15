"""Reports as Python objects: the findings of an audit, a saved report read again, the static pass as a function."""

from __future__ import annotations

import html
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from precaudit.errors import FindingsError

if TYPE_CHECKING:
    from precaudit.model.wire import Finding, Report, RoleSummary


class Audited:
    """A report and the questions one asks of it; printed it is the terminal's text, in a notebook the page."""

    _report: Report | None

    @property
    def report(self) -> Report:
        """The whole report, as its JSON says it (docs/formats.md)."""
        assert self._report is not None
        return self._report

    @property
    def findings(self) -> list[Finding]:
        """Its errors and warnings, worst first; neither notes nor what was silenced."""
        from precaudit.launch.verdict import loud

        return loud(self.report.findings)

    @property
    def roles(self) -> list[RoleSummary]:
        """Which role held which dtype in how many tensors: the rows of the report's table."""
        return self.report.roles

    @property
    def ok(self) -> bool:
        """Everything that was to be watched was, without an error or a warning."""
        return self.report.status == "clean"

    @property
    def inconclusive(self) -> bool:
        """Nothing was found, and not everything was seen: `report.coverage.notes` say why."""
        return self.report.status == "inconclusive"

    def raise_for_findings(self, severity: str = "error") -> None:
        """Raises FindingsError with the report's text where something is at least so severe.

        Args:
            severity: "error", "warning" or "note".
        """
        from precaudit.launch.verdict import reaches

        if reaches(self.report.findings, severity):
            raise FindingsError(self.text())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the report; the name's ending says how: .json, .html, .md, .sarif, .xml, .txt, else JSON.

        Raises OutputError where it cannot be written.
        """
        from precaudit.commands.output import format_of
        from precaudit.launch.save import check_writable, write_named
        from precaudit.report import render

        target = Path(path)
        check_writable(target)
        shape = format_of(target, None, "json")
        write_named(target, render(self.report, shape, width=100))

    def flat(self) -> dict[str, str | int | float]:
        """Names and values for an experiment tracker: `precision/optimizer_state`, counts, measured numbers."""
        from precaudit.report.flat import flat

        return flat(self.report)

    def log(self, destination: str) -> None:
        """Sends `flat()` to a tracker, from rank 0: "wandb", "mlflow", "tensorboard", "trackio", "jsonl".

        Into the run that is active in this process, else into one of its own: "wandb:my-project", "jsonl:file.jsonl".
        Raises UsageError where the tracker is not installed, OutputError where it refuses.
        """
        from precaudit.integrations.logs import log

        log(self.report, destination)

    def text(self, width: int = 100) -> str:
        """What the terminal shows."""
        from precaudit.report import render

        return render(self.report, "text", width=width, show_again="")

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        """`<Audit: 2 errors, 0 warnings>`; before the report is there, that it is not."""
        from precaudit.report.words import verdict

        said = verdict(self._report) if self._report is not None else "not over yet"
        return f"<{type(self).__name__}: {said}>"

    def __rich__(self) -> Any:
        from precaudit.report.terminal import as_rich

        return as_rich(self.report)

    def _repr_html_(self) -> str:
        """The page in a frame of its own, so that its style meets nobody else's."""
        from precaudit.report import render

        page = html.escape(render(self.report, "html"), quote=True)
        return f'<iframe srcdoc="{page}" width="100%" height="600" sandbox></iframe>'


class Loaded(Audited):
    """A report that is there already."""

    def __init__(self, report: Report) -> None:
        self._report = report


def load(path: str | os.PathLike[str]) -> Loaded:
    """Reads a JSON report, or merges those of a folder of ranks. Raises ReportError where it is none."""
    from precaudit import rulebook
    from precaudit.launch.gather import gather
    from precaudit.launch.trace import Choice

    book = rulebook.load()
    return Loaded(gather([Path(path)], Choice(frozenset(book.rules), fail_on="never"), book))


def check(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] = (".",)) -> Loaded:
    """Runs the static pass over files and folders, with the settings of the nearest pyproject.toml.

    Raises UsageError for a path that does not exist.
    """
    from precaudit.commands.check import build, collect, unread_in
    from precaudit.settings import load as settings_of

    settings = settings_of()
    discovered, results = collect([paths] if isinstance(paths, str) else _names(paths), settings, {})
    unread = [line for item, result in results for line in unread_in(item, result)]
    foreign = [f"{item.shown}: {result['foreign']}" for item, result in results if "foreign" in result]
    skipped = [*discovered.skipped, *unread, *foreign]
    read = sum("error" not in result and "foreign" not in result for _, result in results)
    return Loaded(build(results, settings, read, skipped, bool(read) and not discovered.barren and not unread))


def _names(paths: os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[str]:
    return [os.fspath(path) for path in ([paths] if isinstance(paths, os.PathLike) else paths)]
