"""The README shows what the program prints. `python tests/test_readme.py` writes it anew, to be read in review."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from precaudit import settings
from precaudit.static.files.fixes.rules import FIXES

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
COMMAND = ("trace", "fixtures/scripts/gpt_bf16_adamw.py")
BLOCK = re.compile(r"(<!-- capture:trace -->\n)(.*?)(<!-- /capture:trace -->)", re.DOTALL)


def capture() -> str:
    """What `precaudit trace` prints on a terminal of 100 columns, as a fenced block."""
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
        done = subprocess.run(
            [sys.executable, "-m", "precaudit", COMMAND[0], "--output", str(Path(folder) / "report.json"), COMMAND[1]],
            cwd=ROOT,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=120,
        )
    assert done.returncode == 1, done.stderr
    report = done.stderr.replace(sys.executable, "python")
    return f"```\n$ precaudit {' '.join(COMMAND)}\n{report.rstrip()}\n```\n"


def scrubbed(text: str) -> list[str]:
    """The words without numbers and layout, which differ between machines and Python versions."""
    return re.sub(r"[\d.,+^]+", " ", text).split()


def test_the_picture_in_the_readme_is_what_the_program_prints() -> None:
    shown = BLOCK.search(README.read_text(encoding="utf-8"))
    assert shown is not None
    assert scrubbed(shown[2]) == scrubbed(capture()), "run: python tests/test_readme.py"


def test_every_local_link_of_the_readme_leads_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README.read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_setting_and_every_fix_is_documented() -> None:
    text = (ROOT / "docs" / "check.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `([a-z-]+)` \|", text, re.MULTILINE) == [key.replace("_", "-") for key in settings.KEYS]
    safe, unsafe = re.search(r"`--fix` applies(.*?)`--unsafe-fixes` adds(.*?)\n\n", text, re.DOTALL).groups()  # type: ignore[union-attr]
    for words, kind in ((safe, False), (unsafe, True)):
        assert set(re.findall(r"PA\d{3}", words)) == {rule for rule, fix in FIXES.items() if fix.unsafe is kind}


if __name__ == "__main__":
    text = README.read_text(encoding="utf-8")
    README.write_text(BLOCK.sub(lambda match: match[1] + capture() + match[3], text), encoding="utf-8")
