"""A language server: what `precaudit check` finds in the text of an editor, its fixes, and a rule's page on hover.

Each document is examined as it stands in the editor, in this process, a moment after the last key. A saved file whose
result is in the cache of `precaudit check` is not examined again. Notebooks are left to the command.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from lsprotocol import types
from pygls.lsp.server import LanguageServer
from pygls.uris import from_fs_path, to_fs_path

from precaudit import __version__, rulebook, settings, suppressions
from precaudit.errors import PrecauditError
from precaudit.model.wire import Finding, Severity
from precaudit.report import words
from precaudit.report.rulepage import rule_markdown
from precaudit.static.decoding import SourceError
from precaudit.static.files.cache import FOLDER, Cache
from precaudit.static.files.discovery import CONFIGS, SOURCES, Found
from precaudit.static.files.fixes import mended
from precaudit.static.files.run import examine
from precaudit.static.findings import findings_of

PAUSE = 0.3
"""Seconds without a key before a document is examined."""
LEVELS = {
    Severity.ERROR: types.DiagnosticSeverity.Error,
    Severity.WARNING: types.DiagnosticSeverity.Warning,
    Severity.NOTE: types.DiagnosticSeverity.Information,
}
LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+$")


class Examined(NamedTuple):
    """One document's text, with what was found in it."""

    text: str
    findings: list[Finding]


class Desk:
    """Examines texts as `precaudit check` in this folder would, one at a time."""

    def __init__(self) -> None:
        self._known: dict[str, Examined] = {}
        self._one_by_one = ThreadPoolExecutor(max_workers=1)
        self._cache: Cache | None = None

    async def findings(self, file: str, text: str) -> Examined:
        """What this text holds: errors and warnings, and notes where the settings ask for them."""
        known = self._known.get(file)
        if known is None or known.text != text:
            known = await asyncio.get_running_loop().run_in_executor(self._one_by_one, self._examined, file, text)
            self._known[file] = known
        return known

    async def offers(self, file: str, text: str, finding: Finding) -> list[tuple[str, str, bool]]:
        """(title, the text afterwards, preferred) of each way to answer one finding."""
        return await asyncio.get_running_loop().run_in_executor(self._one_by_one, self._offers, file, text, finding)

    def forget(self, file: str) -> None:
        self._known.pop(file, None)

    def _examined(self, file: str, text: str) -> Examined:
        here = settings.load(Path(file).parent)
        item, raw = _found(file), text.encode("utf-8", "surrogatepass")
        if self._cache is None:
            self._cache = Cache(Path(here.cache_dir or here.root / FOLDER))
        result = None
        with suppress(OSError):
            stat = os.stat(file)
            if stat.st_size == len(raw):
                result = self._cache.by_content(item, stat, raw)
        if result is None:
            result = examine(item, raw)
        found = findings_of([(item, result)], here)
        shown = [f for f in found if not f.suppressed and f.path == item.shown and f.line]
        return Examined(text, [f for f in shown if here.notes or f.severity is not Severity.NOTE])

    def _offers(self, file: str, text: str, finding: Finding) -> list[tuple[str, str, bool]]:
        offered = []
        python = file.endswith(SOURCES)
        with suppress(SourceError):
            if python and (done := mended(_found(file), text, finding, settings.load(Path(file).parent))) is not None:
                changed, unsafe = done
                title = f"{finding.rule}: {words.visible(finding.fix)}"
                offered.append((f"{title} (may change what the code means)" if unsafe else title, changed, not unsafe))
        if not file.endswith(".json") and not finding.rule.startswith("PA0"):
            with suppress(SyntaxError, UnicodeError):
                silent, count = suppressions.with_ignores(text, {finding.line or 1: {finding.rule}}, python)
                if count:
                    offered.append((f"{finding.rule}: silence it here; say after the comment why", silent, False))
        return offered


def _found(file: str) -> Found:
    return Found(file, os.path.relpath(file).replace(os.sep, "/"))


class Server(LanguageServer):  # type: ignore[misc]
    """The language server of `precaudit server`."""

    def __init__(self) -> None:
        super().__init__("precaudit", __version__)
        self.desk = Desk()
        self.waiting: dict[str, asyncio.Task[None]] = {}

    def lines(self, text: str) -> list[str]:
        """The lines as editors count them: form feeds and their like end none."""
        return LINE.findall(text)

    def range(self, lines: list[str], start: tuple[int, int], end: tuple[int, int]) -> types.Range:
        """From (line, column) to (line, column), counted from 0 in characters, in the client's own units."""
        codec = self.workspace.position_codec
        ends = [codec.position_to_client_units(lines, types.Position(*at)) for at in (start, end)]
        return types.Range(*ends)

    def place(self, lines: list[str], finding: Finding) -> types.Range:
        """Where a finding stands; to the end of its line where it does not say."""
        line, column = (finding.line or 1) - 1, (finding.column or 1) - 1
        last = (finding.end_line or line + 1) - 1
        text = lines[last].rstrip() if last < len(lines) else ""
        return self.range(lines, (line, column), (last, (finding.end_column or len(text) + 1) - 1))

    def schedule(self, uri: str, pause: float) -> None:
        """Examines a document after a pause, unless something else happens to it before."""
        if (before := self.waiting.pop(uri, None)) is not None:
            before.cancel()
        self.waiting[uri] = asyncio.get_running_loop().create_task(self._publish_after(uri, pause))

    async def _publish_after(self, uri: str, pause: float) -> None:
        await asyncio.sleep(pause)
        document = self.workspace.get_text_document(uri)
        found = await self.examined(uri, document.source)
        if found is None:
            return
        lines = self.lines(found.text)
        diagnostics = [self.diagnostic(finding, lines) for finding in found.findings]
        self.text_document_publish_diagnostics(types.PublishDiagnosticsParams(uri, diagnostics, document.version))

    async def examined(self, uri: str, text: str) -> Examined | None:
        """What is found in a document; nothing in one of another kind, one message where settings cannot be used."""
        file = to_fs_path(uri) or ""
        if not file.endswith((*SOURCES, *CONFIGS)):
            return None
        try:
            return await self.desk.findings(file, text)
        except PrecauditError as error:
            self.window_show_message(types.ShowMessageParams(types.MessageType.Warning, f"precaudit: {error}"))
            return None

    def diagnostic(self, finding: Finding, lines: list[str]) -> types.Diagnostic:
        """A finding as editors show it, with its cause as a second place."""
        related = []
        cause = finding.cause
        if cause is not None and cause.path and cause.line:
            at = types.Position(cause.line - 1, max(cause.column - 1, 0))
            uri = from_fs_path(os.path.abspath(cause.path)) or ""
            related = [types.DiagnosticRelatedInformation(types.Location(uri, types.Range(at, at)), cause.text)]
        rule = rulebook.load().find(finding.rule)
        return types.Diagnostic(
            range=self.place(lines, finding),
            message=f"{words.visible(finding.message)}\nfix: {words.visible(finding.fix)}",
            severity=LEVELS[finding.severity],
            code=finding.rule,
            code_description=types.CodeDescription(rule.references[0]) if rule.references else None,
            source="precaudit",
            related_information=related,
        )

    def replacing(self, before: str, after: str) -> types.TextEdit:
        """The one edit that makes one text of the other, with what they share left alone."""
        start = _shared(before, after)
        shared = _shared(before[start:][::-1], after[start:][::-1])
        end = len(before) - shared
        lines = self.lines(before)
        place = self.range(lines, _position(lines, start), _position(lines, end))
        return types.TextEdit(place, after[start : len(after) - shared])


def _position(lines: list[str], offset: int) -> tuple[int, int]:
    for number, line in enumerate(lines):
        if offset < len(line):
            return number, offset
        offset -= len(line)
    return len(lines), offset


def _shared(one: str, other: str) -> int:
    """How many characters both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((number for number, (a, b) in pairs if a != b), min(len(one), len(other)))


def begin(ls: Server, params: types.InitializedParams) -> None:
    """Goes into the editor's folder: names in findings and settings count from there."""
    folder = ls.workspace.root_path
    if folder and os.path.isdir(folder):
        os.chdir(folder)


async def opened(ls: Server, params: types.DidOpenTextDocumentParams) -> None:
    ls.schedule(params.text_document.uri, 0.0)


async def changed(ls: Server, params: types.DidChangeTextDocumentParams) -> None:
    ls.schedule(params.text_document.uri, PAUSE)


async def saved(ls: Server, params: types.DidSaveTextDocumentParams) -> None:
    """Examines it anew: what it imports may have been saved too."""
    ls.desk.forget(to_fs_path(params.text_document.uri) or "")
    ls.schedule(params.text_document.uri, 0.0)


async def closed(ls: Server, params: types.DidCloseTextDocumentParams) -> None:
    uri = params.text_document.uri
    if (before := ls.waiting.pop(uri, None)) is not None:
        before.cancel()
    ls.desk.forget(to_fs_path(uri) or "")
    ls.text_document_publish_diagnostics(types.PublishDiagnosticsParams(uri, []))


async def actions(ls: Server, params: types.CodeActionParams) -> list[types.CodeAction]:
    """The fix of each finding at this place, and the comment that silences it."""
    uri = params.text_document.uri
    return [
        types.CodeAction(
            title=title,
            kind=types.CodeActionKind.QuickFix,
            diagnostics=[ls.diagnostic(finding, ls.lines(text))],
            is_preferred=preferred,
            edit=types.WorkspaceEdit(changes={uri: [ls.replacing(text, after)]}),
        )
        for finding, text in await _at(ls, uri, params.range)
        for title, after, preferred in await ls.desk.offers(to_fs_path(uri) or "", text, finding)
    ]


async def hover(ls: Server, params: types.HoverParams) -> types.Hover | None:
    """The page of each rule that is broken at this place."""
    spot = types.Range(params.position, params.position)
    rules = dict.fromkeys(finding.rule for finding, _ in await _at(ls, params.text_document.uri, spot))
    pages = [rule_markdown(rulebook.load().find(rule)) for rule in rules]
    return types.Hover(types.MarkupContent(types.MarkupKind.Markdown, "\n---\n".join(pages))) if pages else None


async def _at(ls: Server, uri: str, spot: types.Range) -> list[tuple[Finding, str]]:
    """The findings that touch a range of a document, each with the document's text."""
    text = ls.workspace.get_text_document(uri).source
    found = await ls.examined(uri, text)
    if found is None:
        return []
    lines = ls.lines(found.text)
    places: list[tuple[Finding, Any]] = [(finding, ls.place(lines, finding)) for finding in found.findings]
    return [(f, found.text) for f, place in places if place.start <= spot.end and spot.start <= place.end]


FEATURES: tuple[tuple[str, Callable[..., Any], Any], ...] = (
    (types.INITIALIZED, begin, None),
    (types.TEXT_DOCUMENT_DID_OPEN, opened, None),
    (types.TEXT_DOCUMENT_DID_CHANGE, changed, None),
    (types.TEXT_DOCUMENT_DID_SAVE, saved, None),
    (types.TEXT_DOCUMENT_DID_CLOSE, closed, None),
    (
        types.TEXT_DOCUMENT_CODE_ACTION,
        actions,
        types.CodeActionOptions(code_action_kinds=[types.CodeActionKind.QuickFix]),
    ),
    (types.TEXT_DOCUMENT_HOVER, hover, None),
)
"""What an editor may ask or tell, and what answers."""


def server() -> Server:
    """The server with its features; `precaudit server` runs it on standard input and output."""
    made = Server()
    for name, answer, options in FEATURES:
        made.feature(name, options)(answer)
    return made
