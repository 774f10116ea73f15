"""Runs `precaudit trace` as a user would, on a stand-in torch and runtime that start in milliseconds."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from precaudit import cli

STANDIN = Path(__file__).parent / "standin"

ANYWHERE = f"""
import sys
from pathlib import Path
from precaudit.launch import bootstrap
bootstrap.RUNTIME = Path({str(STANDIN / "runtime")!r})
from precaudit.cli import main
main()
"""
"""The `precaudit` command with the stand-in runtime, for `python -c`."""


@dataclass(frozen=True)
class Result:
    """What a user saw of one command."""

    code: int
    stdout: str
    stderr: str
    report: Mapping[str, Any]

    @property
    def ours(self) -> list[str]:
        """Our own one-line messages."""
        return [line for line in self.stderr.splitlines() if line.startswith("precaudit: ")]


class Desk:
    """A working directory with a user's files in it."""

    def __init__(self, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self._capfd = capfd

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def precaudit(self, *words: str) -> Result:
        """Runs `precaudit …` here, in this process; only the traced command is a process of its own."""
        self._capfd.readouterr()
        code = cli.run(list(words))
        out, err = self._capfd.readouterr()
        return Result(code, out, err, self.report)

    def trace(self, source: str, *options: str, arguments: tuple[str, ...] = ()) -> Result:
        """Traces a script with this source."""
        self.write("train.py", source)
        return self.precaudit("trace", *options, "train.py", *arguments)

    def start(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        """Starts `precaudit …` as a process, for what only a process can have: signals."""
        return subprocess.Popen(
            [sys.executable, "-c", ANYWHERE, *words],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A job in the background of a shell ignores Ctrl-C, and so would all that it starts.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            **options,
        )

    @property
    def report(self) -> Mapping[str, Any]:
        """The latest report, or {}."""
        path = self.folder / ".precaudit" / "latest" / "report.json"
        return json.loads(path.read_text()) if path.exists() else {}
