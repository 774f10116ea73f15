"""README and documentation show what the program prints. `python tests/test_readme.py` writes it anew, to be read."""

from __future__ import annotations

import html
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from captures import scrubbed

from precaudit import settings
from precaudit.static.files.fixes.rules import FIXES

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PICTURE = ROOT / "docs" / "pictures" / "trace.svg"
RESULTS = ROOT / "benchmarks" / "results"
COMMAND = ("trace", "fixtures/scripts/gpt_bf16_adamw.py")
PEERS = re.compile(r"(<!-- peers -->\n)(.*?)(<!-- /peers -->)", re.DOTALL)


def traced() -> str:
    """The report of `precaudit trace`, as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "precaudit", COMMAND[0], "--output", str(report), COMMAND[1]]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
        done = subprocess.run(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True,
                              encoding="utf-8", timeout=120)  # fmt: skip
        assert done.returncode == 1, done.stderr
        return report.read_text(encoding="utf-8")


def picture(raw: str) -> str:
    """The report as a terminal shows it, in colour, as an SVG that asks for no font from elsewhere."""
    from rich.console import Console
    from rich.terminal_theme import MONOKAI
    from rich.text import Text

    from precaudit.model.wire import Report
    from precaudit.report import render

    console = Console(record=True, width=92, file=open(os.devnull, "w"), force_terminal=True)  # noqa: SIM115
    console.print(f"$ precaudit {' '.join(COMMAND)}\n", markup=False, highlight=False)
    shown = render(Report.model_validate_json(raw), "text", root=ROOT, color=True, width=90)
    console.print(Text.from_ansi(shown), soft_wrap=True)
    drawn = console.export_svg(title="precaudit", theme=MONOKAI, unique_id="trace")
    drawn = drawn.replace("#625e4c", "#9a9a8c")  # dim words, still to be read
    drawn = re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL)
    return drawn.replace("Fira Code", "ui-monospace, Menlo, Consolas").replace(
        "<!-- Generated with Rich https://www.textualize.io -->", ""
    )


def words_of(svg: str) -> list[str]:
    """The words of a picture, without numbers and layout; its title bar is not the program's."""
    texts = re.findall(r"<text[^>]*clip-path[^>]*>(.*?)</text>", svg)
    return scrubbed(" ".join(html.unescape(text).replace("\xa0", " ") for text in texts))


def peers() -> str:
    """What the benchmarks measured beside others in one run, from the newest results that are kept."""
    trace, check = (json.loads(max(RESULTS.glob(f"{name}-*.json")).read_text()) for name in ("trace", "check"))
    rows = ["", "| Measured in one run | precaudit | Others |", "|---|---|---|"]
    for shape, said in (("launch-bound", "small operations"), ("compute-bound", "large operations")):
        ratio = {name: one["ratio"] for name, one in trace["results"][shape]["variants"].items()}
        ours, other = ratio["precaudit, traced steps"], ratio["DebugMode"]
        rows.append(
            f"| a traced step, {said} | {ours:.2f} × an untraced one | torch's DebugMode, which logs: {other:.2f} × |"
        )
    for name, one in check["libraries"].items():
        if "TorchFix" in one:
            rows.append(
                f"| checking {name}, {one['lines']:,} lines | {one['cold']:.2g} s of CPU, again {one['warm']:.2g} s | "
                f"TorchFix {one['TorchFix']:.0f} s, ruff {one['ruff']:.2g} s |"
            )
    return "\n".join([*rows, "", ""])


def test_the_picture_is_what_the_program_prints() -> None:
    drawn = PICTURE.read_text(encoding="utf-8")
    assert words_of(drawn) == words_of(picture(traced())), "run: python tests/test_readme.py"
    assert "url(http" not in drawn


def test_the_comparison_with_others_is_what_the_benchmarks_measured() -> None:
    shown = PEERS.search(README.read_text(encoding="utf-8"))
    assert shown is not None
    assert shown[2] == peers(), "run: python tests/test_readme.py"


def test_the_chinese_readme_has_the_same_commands_figures_and_links() -> None:
    english, chinese = (path.read_text(encoding="utf-8") for path in (README, ROOT / "README.zh-CN.md"))
    commands = re.compile(r"^(?:precaudit [a-z]+|make|pip|uvx) [^#\n]*(?=#)", re.MULTILINE)
    assert commands.findall(chinese) == commands.findall(english)
    assert PEERS.search(chinese)[0] == PEERS.search(english)[0]  # type: ignore[index]
    links = [set(re.findall(r"\]\(([^)#]+)", text)) for text in (english, chinese)]
    translated = {"README.md", "README.zh-CN.md", "docs/start.md", "docs/start.zh-CN.md"}
    assert links[0] - translated == links[1] - translated


def test_the_readme_is_one_screen() -> None:
    """Sixty lines; the picture is the program's, and the first commands say how to install."""
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 60
    first = next(at for at, line in enumerate(lines) if line == "```")
    assert any("pip install" in line for line in lines[first : first + 4])


def test_every_setting_and_every_fix_is_documented() -> None:
    text = (ROOT / "docs" / "check.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `([a-z-]+)` \|", text, re.MULTILINE) == [key.replace("_", "-") for key in settings.KEYS]
    safe, unsafe = re.search(r"`--fix` applies(.*?)`--unsafe-fixes` adds(.*?)\n\n", text, re.DOTALL).groups()  # type: ignore[union-attr]
    for words, kind in ((safe, False), (unsafe, True)):
        assert set(re.findall(r"PA\d{3}", words)) == {rule for rule, fix in FIXES.items() if fix.unsafe is kind}


if __name__ == "__main__":
    for page in (README, ROOT / "README.zh-CN.md"):
        page.write_text(PEERS.sub(lambda match: match[1] + peers() + match[3], page.read_text(encoding="utf-8")))
    PICTURE.write_text(picture(traced()), encoding="utf-8")
