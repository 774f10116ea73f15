"""Outputs that the documentation shows, made by the program; `python tests/captures.py` writes them anew, to be read.

A page has them between two comments, the command in the first line:

    <!-- capture slow from="exact step" to="lost at" -->
    ```console
    $ precaudit trace --exact fixtures/PA101/bad.py
    ...
    ```
    <!-- /capture -->

`from` and `to` keep a part of the output: from the first line that begins so up to the next that begins with the other.
With `program` the command runs in an empty folder, where the last Python block above it is train.py.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("README*.md"), *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(
    r"(?P<head><!-- capture(?P<options>[^\n]*?) -->\n```\w*\n\$ precaudit (?P<words>[^\n]*)\n)"
    r"(?P<shown>.*?)(?P<tail>```\n<!-- /capture -->)",
    re.DOTALL,
)
PROGRAM = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


class Capture(NamedTuple):
    """One output in one page."""

    page: Path
    words: str
    """The command, without "precaudit"."""
    shown: str
    slow: bool
    start: str
    end: str
    program: str = ""
    """What stands in train.py; empty where the command runs in the repository."""

    def printed(self) -> str:
        """What the command prints now, of it the part that is shown."""
        with tempfile.TemporaryDirectory() as folder:
            environment = {
                **os.environ, "COLUMNS": "100", "NO_COLOR": "1", "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8",
                "PRECAUDIT_OUTPUT_DIR": f"{folder}/out", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1",
                "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            }  # fmt: skip
            environment.pop("GITHUB_ACTIONS", None)
            if self.program:
                Path(folder, "train.py").write_text(self.program, encoding="utf-8")
            done = subprocess.run(
                [sys.executable, "-m", "precaudit", *shlex.split(self.words)], cwd=folder if self.program else ROOT,
                env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                encoding="utf-8", timeout=300,
            )  # fmt: skip
        text = done.stdout.replace(sys.executable, "python").replace(f"--output-dir {folder}/out ", "")
        return part(text, self.start, self.end)


def part(text: str, start: str, end: str) -> str:
    """The lines from the first that begins with `start` up to the next that begins with `end`."""
    lines = [line.rstrip() for line in text.rstrip().splitlines()]
    if start:
        lines = lines[next(at for at, line in enumerate(lines) if line.strip().startswith(start)) :]
    if end:
        lines = lines[: next(at for at, line in enumerate(lines) if at and line.strip().startswith(end))]
    return "\n".join(lines).strip("\n") + "\n"


def captures(page: Path) -> Iterator[tuple[re.Match[str], Capture]]:
    """Each output of a page, with where it stands."""
    text = page.read_text(encoding="utf-8")
    for match in BLOCK.finditer(text):
        options = shlex.split(match["options"])
        given = dict(word.partition("=")[::2] for word in options)
        program = PROGRAM.findall(text[: match.start()])[-1] if "program" in given else ""
        start, end = given.get("from", ""), given.get("to", "")
        yield match, Capture(page, match["words"], match["shown"], "slow" in given, start, end, program)


def scrubbed(text: str) -> list[str]:
    """The words without numbers and layout, which differ between machines and Python versions."""
    return re.sub(r"[\d.,+^]+", " ", text).split()


def main(only: str = "") -> None:
    """Writes the outputs of all pages, or of those with `only` in their name."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if only in page.name:
            for match, capture in captures(page):
                text = text.replace(match[0], match["head"] + capture.printed() + match["tail"])
            page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
