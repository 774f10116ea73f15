"""The documentation without network: each link leads somewhere, each file is listed, and the site builds strictly."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "skills").rglob("*.md"), ROOT / "llms.txt"]
)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)|<img[^>]* src=\"([^\"]+)\"")
FENCE = re.compile(r"^( *)(`{3,}).*?^\1\2\s*$", re.DOTALL | re.MULTILINE)


def prose(page: Path) -> str:
    """A page without its code."""
    return re.sub(r"`[^`\n]*`", "code", FENCE.sub("", page.read_text(encoding="utf-8")))


def anchors(page: Path) -> set[str]:
    """What can be linked to in a page: its headings, spelled as GitHub spells them, and names that HTML gives."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    plain = (re.sub(r"[`*\\]|\]\([^)]*\)|\[", "", heading).strip().lower() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain} | set(
        re.findall(r'id="([^"]+)"', text)
    )


def links(page: Path) -> Iterator[tuple[str, str]]:
    """(file, anchor) of each link that stays in the repository."""
    for markdown, tag in LINK.findall(prose(page)):
        target = markdown or tag
        if not re.match(r"[a-z]+:", target):
            yield target.partition("#")[0], target.partition("#")[2]


def test_every_link_leads_to_a_file_and_to_a_heading_of_it() -> None:
    broken = []
    seen = 0
    for page in PAGES:
        for path, anchor in links(page):
            seen += 1
            target = (page.parent / path).resolve() if path else page
            known = target.exists() and (not anchor or target.suffix != ".md" or anchor in anchors(target))
            if not known:
                broken.append(f"{page.relative_to(ROOT)}: {path}{'#' + anchor if anchor else ''}")
    assert broken == []
    assert seen > 150


def test_every_picture_that_is_kept_is_shown_somewhere() -> None:
    shown = {(page.parent / path).resolve() for page in PAGES for path, _ in links(page)}
    pictures = [path for path in (ROOT / "docs").rglob("*") if path.suffix in (".png", ".svg")]
    assert pictures
    assert [path.name for path in pictures if path not in shown] == []


@pytest.mark.slow
def test_the_site_builds_strictly_with_a_page_for_each_rule(tmp_path: Path) -> None:
    from precaudit import rulebook

    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    assert {path.stem for path in (tmp_path / "rules").glob("PA*.html")} == set(rulebook.load().rules)
    listed = (tmp_path / "index.html").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert f'href="{page.stem}.html"' in listed, page.name
