"""The language server under a real client, over a real pipe: diagnostics while typing, fixes that hold, rule pages."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
BAD = (ROOT / "fixtures" / "PA202" / "bad.py").read_text(encoding="utf-8")
LINE = next(number for number, line in enumerate(BAD.splitlines()) if "# expect: PA202" in line)


class Editor:
    """A client that keeps what it is shown, as an editor does."""

    def __init__(self, client: Any, folder: Path) -> None:
        self.client, self.folder = client, folder
        self.shown: asyncio.Queue[Any] = asyncio.Queue()
        self.version = 0

    def uri(self, name: str) -> str:
        return (self.folder / name).as_uri()

    def open(self, name: str, text: str, language: str = "python") -> None:
        from lsprotocol import types

        item = types.TextDocumentItem(self.uri(name), language, self.version, text)
        self.client.text_document_did_open(types.DidOpenTextDocumentParams(item))

    def type(self, name: str, text: str) -> None:
        """The whole document, as it is after some keys."""
        from lsprotocol import types

        self.version += 1
        document = types.VersionedTextDocumentIdentifier(self.version, self.uri(name))
        changes = [types.TextDocumentContentChangeWholeDocument(text)]
        self.client.text_document_did_change(types.DidChangeTextDocumentParams(document, changes))

    async def diagnostics(self) -> list[Any]:
        """What is shown next."""
        params = await asyncio.wait_for(self.shown.get(), 60)
        return list(params.diagnostics)

    async def actions(self, name: str, place: Any) -> list[Any]:
        from lsprotocol import types

        document = types.TextDocumentIdentifier(self.uri(name))
        params = types.CodeActionParams(document, place, types.CodeActionContext([]))
        return list(await self.client.text_document_code_action_async(params))


def edit(folder: Path, session: Callable[[Editor], Coroutine[Any, Any, Any]]) -> Any:
    """What this session of an editor with a new `precaudit server` gives."""
    from lsprotocol import types
    from pygls.lsp.client import LanguageClient

    async def all_of_it() -> Any:
        client = LanguageClient("editor", "1")
        editor = Editor(client, folder)
        client.feature(types.TEXT_DOCUMENT_PUBLISH_DIAGNOSTICS)(lambda params: editor.shown.put_nowait(params))
        await client.start_io(sys.executable, "-m", "precaudit", "server")
        capabilities = types.ClientCapabilities()
        params = types.InitializeParams(capabilities, root_uri=folder.as_uri())
        await client.initialize_async(params)
        client.initialized(types.InitializedParams())
        try:
            return await session(editor)
        finally:
            await client.shutdown_async(None)
            client.exit(None)
            await client.stop()

    return asyncio.run(all_of_it())


def after(text: str, action: Any) -> str:
    """The text once an editor has applied the action's edits; columns are those of a text without wide characters."""
    lines = text.splitlines(keepends=True)
    (edits,) = action.edit.changes.values()
    for one in edits:
        offsets = [sum(map(len, lines[: p.line])) + p.character for p in (one.range.start, one.range.end)]
        text = text[: offsets[0]] + one.new_text + text[offsets[1] :]
    return text


def test_a_mistake_is_shown_while_typing_and_gone_when_it_is_mended(tmp_path: Path) -> None:
    async def session(editor: Editor) -> None:
        editor.open("train.py", BAD)
        (found,) = await editor.diagnostics()
        assert (found.code, found.source, found.severity, found.range.start.line) == ("PA202", "precaudit", 1, LINE)
        assert "scaler.unscale_" in found.message
        assert found.related_information[0].location.uri == editor.uri("train.py")
        (fix, silence) = await editor.actions("train.py", found.range)
        assert fix.is_preferred
        mended = after(BAD, fix)
        editor.type("train.py", mended)
        assert await editor.diagnostics() == []
        editor.type("train.py", after(BAD, silence))
        assert await editor.diagnostics() == []
        assert "ignore[PA202]" in after(BAD, silence)
        (tmp_path / "mended.py").write_text(mended, encoding="utf-8")

    edit(tmp_path, session)
    done = subprocess.run(
        [sys.executable, "-m", "precaudit", "check", "mended.py"], cwd=tmp_path, capture_output=True, check=False
    )
    assert done.returncode == 0
    assert not (tmp_path / "train.py").exists()


def test_only_the_last_of_quick_keys_is_examined(tmp_path: Path) -> None:
    async def session(editor: Editor) -> int:
        editor.open("train.py", BAD)
        await editor.diagnostics()
        for count in range(20):
            editor.type("train.py", BAD + "#" * count)
        await editor.diagnostics()
        await asyncio.sleep(1)
        return editor.shown.qsize()

    assert edit(tmp_path, session) == 0


def test_text_that_is_no_python_yet_shows_nothing_and_ends_nothing(tmp_path: Path) -> None:
    async def session(editor: Editor) -> None:
        editor.open("train.py", BAD + "\nif (")
        assert await editor.diagnostics() == []
        editor.type("train.py", BAD)
        assert [d.code for d in await editor.diagnostics()] == ["PA202"]

    edit(tmp_path, session)


def test_hover_over_a_mistake_shows_the_page_of_its_rule_and_elsewhere_nothing(tmp_path: Path) -> None:
    from lsprotocol import types

    async def session(editor: Editor) -> tuple[Any, Any]:
        editor.open("train.py", BAD)
        (found,) = await editor.diagnostics()
        document = types.TextDocumentIdentifier(editor.uri("train.py"))
        asked = [types.HoverParams(document, at) for at in (found.range.start, types.Position(0, 0))]
        return tuple([await editor.client.text_document_hover_async(params) for params in asked])  # type: ignore[return-value]

    page, nothing = edit(tmp_path, session)
    assert page.contents.value.startswith("## PA202 clip-before-unscale")
    assert nothing is None


def test_places_are_counted_in_the_units_of_the_editor(tmp_path: Path) -> None:
    """UTF-16, where a character beyond the basic plane counts as two."""

    async def session(editor: Editor) -> Any:
        name = "nn.utils.clip_grad_norm_"
        editor.open("train.py", BAD.replace(f"        {name}", f"        '𝒳𝒳'; {name}"))
        (found,) = await editor.diagnostics()
        return found.range.start.character

    assert edit(tmp_path, session) == 8 + len("'") + 4 + len("'; ")


def test_settings_of_the_project_hold_and_a_wrong_one_is_one_message(tmp_path: Path) -> None:
    from lsprotocol import types

    async def session(editor: Editor) -> str:
        said: asyncio.Queue[Any] = asyncio.Queue()
        editor.client.feature(types.WINDOW_SHOW_MESSAGE)(lambda params: said.put_nowait(params))
        (tmp_path / "pyproject.toml").write_text('[tool.precaudit]\nignore = ["PA202"]\n', encoding="utf-8")
        editor.open("train.py", BAD)
        assert await editor.diagnostics() == []
        (tmp_path / "pyproject.toml").write_text('[tool.precaudit]\nignroe = ["PA202"]\n', encoding="utf-8")
        editor.type("train.py", BAD + "#")
        return str((await asyncio.wait_for(said.get(), 60)).message)

    told = edit(tmp_path, session)
    assert told == "precaudit: pyproject.toml: [tool.precaudit] ignroe: unknown key; did you mean 'ignore'?"


def test_configs_are_examined_too(tmp_path: Path) -> None:
    async def session(editor: Editor) -> list[str]:
        on = '{"enabled": true}'
        text = f'{{"train_batch_size": 8, "zero_optimization": {{"stage": 2}},\n "fp16": {on}, "bf16": {on}}}'
        editor.open("ds.json", text, "json")
        return [found.code for found in await editor.diagnostics()]

    assert "PA802" in edit(tmp_path, session)


def test_a_change_is_answered_within_a_second(tmp_path: Path) -> None:
    """With the pause of a third of a second after the last key; the first document pays for imports."""
    shutil.copy(ROOT / "fixtures" / "scripts" / "char_gpt.py", tmp_path)

    async def session(editor: Editor) -> float:
        editor.open("train.py", BAD)
        await editor.diagnostics()
        took = []
        for count in range(5):
            began = time.perf_counter()
            editor.type("train.py", BAD + f"x = {count}\n")
            await editor.diagnostics()
            took.append(time.perf_counter() - began)
        return min(took)

    assert edit(tmp_path, session) < 1.0
