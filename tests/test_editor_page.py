"""The set-ups of docs/editors.md are ones that their editors can read, and start what is there."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from precaudit.cli import COMMANDS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "editors.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_every_set_up_parses_and_starts_the_server() -> None:
    code, zed = (json.loads(block) for block in blocks("json"))
    (helix,) = (tomllib.loads(block) for block in blocks("toml"))
    (neovim,) = blocks("lua")
    commands: list[Any] = [
        [code["glspc.server.command"], *code["glspc.server.commandArguments"]],
        [helix["language-server"]["precaudit"]["command"], *helix["language-server"]["precaudit"]["args"]],
        re.findall(r'"([\w]+)"', neovim.partition("cmd = {")[2].partition("}")[0]),
    ]
    assert commands == [["precaudit", "server"]] * 3
    assert "server" in COMMANDS
    assert zed[0]["command"].split()[1] in COMMANDS
