"""What docs/frameworks/*.md take from data: words for precisions, the fixes in a framework's words, the versions read.

`python tests/framework_pages.py` writes it anew; `tests/test_framework_pages.py` compares it.
"""

from __future__ import annotations

import re
from pathlib import Path

from precaudit import rulebook
from precaudit.model.frameworks import FOLDER, framework

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs" / "frameworks").glob("*.md"))
BLOCK = re.compile(r"(<!-- words: ([\w ]+) -->\n)(.*?)(<!-- /words -->)", re.DOTALL)
HOW = {
    "autocast": "float32 parameters, cast by autocast for each use",
    "parameters": "the parameters themselves are cast",
    "engine": "16-bit parameters, float32 masters in the optimizer",
}


def words(name: str) -> str:
    """What is known of one framework, by the name of its data file or of its fixes."""
    lines: list[str] = []
    if (FOLDER / f"{name}.toml").exists():
        data = framework(name)
        if data.precision:
            lines += ["", f"| {data.title} | Dtype | How |", "|---|---|---|"]
            lines += [f"| `{word}` | {asked.dtype} | {HOW[asked.how]} |" for word, asked in data.precision.items()]
        lines += [
            "",
            "Read in " + ", ".join(f"{package} {version}" for package, version in data.versions.items()) + ".",
        ]
    fixes = [(rule, rule.fixes[name]) for rule in rulebook.load().rules.values() if name in rule.fixes]
    if fixes:
        lines += ["", f"| Rule | What a finding says to write ({name}) |", "|---|---|"]
        for rule, fix in fixes:
            link = f"[{rule.id}](../rules.md#{rule.id.lower()}-{rule.name})"
            lines.append(f"| {link} | {' '.join(fix.split()).replace('|', chr(92) + '|').replace('<', '&lt;')} |")
    return "\n".join(lines) + "\n"


def written(text: str) -> str:
    """A page with its blocks as they are now."""
    return BLOCK.sub(lambda match: match[1] + "".join(map(words, match[2].split())) + "\n" + match[4], text)


def named() -> set[str]:
    """The names that the pages ask for."""
    return {name for page in PAGES for match in BLOCK.finditer(page.read_text()) for name in match[2].split()}


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(written(page.read_text(encoding="utf-8")), encoding="utf-8")
