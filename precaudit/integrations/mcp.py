"""Tools for coding agents by the Model Context Protocol: check, trace, rule and report, in the agent's format.

Each call is a `precaudit` command in a process of its own: the server's standard output belongs to the protocol, and a
traced program must not write there.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ToolAnnotations

from precaudit import __version__, disk

INSTRUCTIONS = """\
Audits the numeric precision of PyTorch training. Prefer `trace` (runs the command, watches two steps, measures) to
`check` (reads the source, runs nothing). Mend findings from the top, at their cause; then run each finding's verify
command. A line "unknown: not observed" is no verdict, and "inconclusive" is not clean."""
READS = ToolAnnotations(read_only_hint=True, open_world_hint=False)
RUNS = ToolAnnotations(read_only_hint=False, destructive_hint=True, open_world_hint=True)
TAIL = 2000
"""Characters of a failed program's own output that an agent is shown."""


def server() -> MCPServer:
    """The server with its tools; `precaudit mcp` runs it on standard input and output."""
    made = MCPServer("precaudit", version=__version__, instructions=INSTRUCTIONS, log_level="WARNING")
    made.tool(annotations=READS, structured_output=False)(check)
    made.tool(annotations=RUNS, structured_output=False)(trace)
    made.tool(annotations=READS, structured_output=False)(rule)
    made.tool(annotations=READS, structured_output=False)(report)
    return made


def check(paths: list[str], folder: str = ".", select: str = "") -> str:
    """Find precision mistakes in Python sources, notebooks and training configs without running them.

    Args:
        paths: files and folders.
        folder: what they are relative to, and where the settings are looked for.
        select: only these rules, such as "PA3,PA202".
    """
    if not paths:
        raise ToolError('check: paths: name files or folders, such as ["src/"]')
    return _said(["check", "--output-format", "agent", *_option("--select", select), "--", *paths], folder)


def trace(
    command: str, folder: str = ".", skip: int = 1, steps: int = 2, preflight: bool = False, timeout_seconds: int = 600
) -> str:
    """Run a training command as it is, watch a few optimizer steps, and report which tensors are held too low.

    The command runs with all that it does; it is stopped after the watched steps.

    Args:
        command: as it would be typed: "train.py --lr 1e-4", "torchrun --nproc-per-node 2 train.py".
        folder: where it runs.
        skip: optimizer steps to let pass before.
        steps: optimizer steps to watch.
        preflight: a CUDA training, on a machine without a GPU.
        timeout_seconds: the command is ended then.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ToolError(f"trace: command: {command!r} cannot be read as a command line: {error}") from None
    numbers = ["--skip", str(skip), "--steps", str(steps), "--timeout", str(timeout_seconds)]
    with tempfile.TemporaryDirectory() as place:
        output = Path(place) / "report.txt"
        done = _run(
            [
                "preflight" if preflight else "trace",
                *numbers,
                "--output-format",
                "agent",
                "--output",
                str(output),
                *words,
            ],
            folder,
        )
        if not output.is_file():
            raise ToolError(_last_line(done))
        text = disk.read_text(output)
    if text.startswith("precaudit trace: script-failed"):
        text += f"the command's own last words:\n{(done.stdout + done.stderr)[-TAIL:]}\n"
    return text


def rule(name: str) -> str:
    """One rule: why, the wrong and the right code, the fix, and when to ignore it.

    Args:
        name: its id or name, "PA301" or "low-precision-optimizer-state".
    """
    return _said(["rules", "--output-format", "md", "--", name], ".")


def report(path: str = "", folder: str = ".") -> str:
    """The latest report of a trace below this folder, or a saved one, again.

    Args:
        path: a report.json or a folder of ranks; empty for the latest.
        folder: where the trace ran.
    """
    return _said(["report", "--output-format", "agent", *(["--", path] if path else [])], folder)


def _option(name: str, value: str) -> list[str]:
    return [name, value] if value else []


def _said(words: list[str], folder: str) -> str:
    """What the command prints; ToolError with its one line where it could not do what it was asked for."""
    done = _run(words, folder)
    if done.returncode in (0, 1, 5) and done.stdout:
        return done.stdout
    raise ToolError(_last_line(done))


def _run(words: list[str], folder: str) -> subprocess.CompletedProcess[str]:
    if not os.path.isdir(folder):
        raise ToolError(f"folder: {folder}: no such folder")
    return subprocess.run(
        [sys.executable, "-m", "precaudit", *words],
        cwd=folder,
        env={**os.environ, "NO_COLOR": "1", "GITHUB_ACTIONS": ""},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = (done.stderr or done.stdout).strip().splitlines()
    return lines[-1] if lines else f"precaudit ended with exit code {done.returncode} and said nothing"
