"""The tools for coding agents, called by the official SDK's own client over a real pipe."""

from __future__ import annotations

import asyncio
import re
import shutil
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def ask(talk: Callable[[Any], Coroutine[Any, Any, Any]], folder: Path) -> Any:
    """What this conversation with a new `precaudit mcp` in the folder gives."""
    from mcp import Client, StdioServerParameters

    async def all_of_it() -> Any:
        server = StdioServerParameters(command=sys.executable, args=["-m", "precaudit", "mcp"], cwd=str(folder))
        async with Client(server) as client:
            return await talk(client)

    return asyncio.run(all_of_it())


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in ("fixtures/PA202/bad.py", "fixtures/scripts/gpt_bf16_adamw.py", "fixtures/scripts/char_gpt.py"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def call(project: Path, tool: str, arguments: dict[str, Any]) -> tuple[bool, str]:
    """(whether it failed, its text) of one call."""
    answer = ask(lambda client: client.call_tool(tool, arguments), project)
    return bool(answer.is_error), "".join(part.text for part in answer.content)


def test_the_tools_say_what_they_take_and_whether_they_run_anything(project: Path) -> None:
    listed = ask(lambda client: client.list_tools(), project).tools
    tools = {tool.name: tool for tool in listed}
    assert set(tools) == {"check", "trace", "rule", "report"}
    assert {name for name, tool in tools.items() if tool.annotations.read_only_hint} == {"check", "rule", "report"}
    assert all(tool.description for tool in listed)
    assert tools["trace"].input_schema["required"] == ["command"]
    page = (ROOT / "docs" / "agents.md").read_text(encoding="utf-8")
    told = {
        name: set(re.findall(r"`(\w+)`", takes)) for name, takes in re.findall(r"^\| `(\w+)` \| (`.*?) \|", page, re.M)
    }
    assert told == {name: set(tool.input_schema["properties"]) for name, tool in tools.items()}


def test_check_trace_report_and_rule_answer_in_one_conversation(project: Path) -> None:
    async def talk(client: Any) -> list[str]:
        calls = [
            ("check", {"paths": ["bad.py"]}),
            ("trace", {"command": "gpt_bf16_adamw.py"}),
            ("report", {}),
            ("rule", {"name": "PA301"}),
        ]
        answers = [await client.call_tool(name, given) for name, given in calls]
        assert not any(answer.is_error for answer in answers)
        return ["".join(part.text for part in answer.content) for answer in answers]

    checked, traced, reported, page = ask(talk, project)
    assert "PA202 error bad.py:30:9 | wrong: " in checked
    assert "verify: precaudit trace gpt_bf16_adamw.py: no PA101" in traced
    findings = [line for line in traced.splitlines() if line.startswith("PA")]
    assert [line for line in reported.splitlines() if line.startswith("PA")] == findings
    assert page.startswith("## PA301 low-precision-optimizer-state")


def test_what_cannot_be_done_is_one_line_that_says_the_way_out(project: Path) -> None:
    wrong: list[tuple[str, dict[str, Any], str]] = [
        ("rule", {"name": "ZZ9"}, "precaudit: no rule matches 'ZZ9'; run \"precaudit rules\" for the list"),
        ("trace", {"command": "trian.py"}, "precaudit: trian.py: no such file"),
        ("check", {"paths": []}, 'check: paths: name files or folders, such as ["src/"]'),
        ("check", {"paths": ["."], "folder": "none"}, "folder: none: no such folder"),
    ]
    for tool, arguments, told in wrong:
        failed, text = call(project, tool, arguments)
        assert failed
        assert told in text
        assert "\n" not in text


def test_a_program_that_fails_shows_its_own_last_words(project: Path) -> None:
    (project / "broken.py").write_text("import torch\nprint('before')\nraise ValueError('the data is gone')\n")
    failed, text = call(project, "trace", {"command": "broken.py"})
    assert "the data is gone" in text
    assert failed or text.startswith("precaudit trace: script-failed")
