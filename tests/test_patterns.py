"""Patterns against git itself: random trees and random .gitignore files, and patterns on which others never end."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from precaudit.patterns import Patterns
from precaudit.static.files.discovery import Excluder

TREES = int(os.environ.get("PRECAUDIT_TREES", "60"))
"""5,000 by hand: PRECAUDIT_TREES=5000 pytest tests/test_patterns.py."""
NAMES = ("a", "b", "ab", "a.b", "foo", "foo.py", "-", "[a]", "a b", "ä", "!a", "#a", "a\\b", "*", "a*", "**")
WORDS = (
    "a", "b", "ab", "foo", ".py", "*", "**", "?", "[ab]", "[!a]", "[a-f]", "[[:alpha:]]", "[]a]", "[^b]", "\\a", "\\*",
    "[", "]", "-", " ", "\\ ", "/", "/", "/", "**/", "/**", "/**/", "!", "#", ".", "ä", "[ä]", "[z-a]", "[[:no:]]",
    "[a\\]]", "[a-", "\\", "[--b]", "[[:digit:]a-c]",
)  # fmt: skip


def tree(chance: random.Random, root: Path) -> Iterator[tuple[str, bool]]:
    """Makes files, folders and .gitignore files; gives each path, and whether it is a folder."""
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        lines = [pattern(chance) for _ in range(chance.choice((0, 1, 2, 4)) if folder else chance.randint(1, 6))]
        ending = chance.choice(("\n", "\n", "\r\n"))
        (root / folder / ".gitignore").write_bytes(ending.join(lines).encode())
        for name in chance.sample(NAMES, chance.randint(1, 5)):
            path = f"{folder}{name}"
            is_folder = path.count("/") < 3 and chance.random() < 0.5
            if is_folder:
                (root / path).mkdir()
                waiting.append(f"{path}/")
            else:
                (root / path).touch()
            yield path, is_folder


def pattern(chance: random.Random) -> str:
    front = chance.choice(("", "", "", "!", "/", "**/"))
    return front + "".join(chance.choices(WORDS, k=chance.randint(1, 5)))


def ignored_by_git(root: Path, paths: list[str]) -> set[str]:
    """What `git check-ignore` says, for paths that nothing is tracked of."""
    asked = "\0".join(f"./{path}" for path in paths).encode()
    done = subprocess.run(["git", "-C", root, "check-ignore", "-z", "--stdin"], input=asked, capture_output=True)
    assert done.returncode in (0, 1), done.stderr
    return {path.removeprefix("./") for path in done.stdout.decode().split("\0") if path}


def ignored_by_us(root: Path, paths: list[tuple[str, bool]]) -> set[str]:
    """What the walk of `check` would leave out."""
    excluder = Excluder(root, (), gitignore=True)
    found: set[str] = set()
    for path, is_folder in sorted(paths, key=lambda one: one[0].count("/")):
        above = os.path.dirname(path) in found
        if above or excluder.excludes(str(root / path), is_folder):
            found.add(path)
    return found


@pytest.mark.parametrize("seed", range(TREES))
def test_random_trees_are_ignored_as_git_ignores_them(seed: int, tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    paths = list(tree(random.Random(seed), tmp_path))
    assert ignored_by_us(tmp_path, paths) == ignored_by_git(tmp_path, [path for path, _ in paths])


@pytest.mark.parametrize(
    "line",
    ["*a" * 28 + "*b", "**/" * 3000 + "b", "a*" * 5000, "*" * 9000 + "b", "[a" * 4000, "(?:a+)+" * 20 + "*?*" * 50],
)
def test_no_pattern_takes_long(line: str) -> None:
    began = time.process_time()
    patterns = Patterns([line, f"/{line}", f"x/{line}"])
    for path in ("a" * 250, "a/" * 2000 + "c", "x/" + "a" * 4000):
        patterns.verdict(path, False)
        patterns.cover(path[:500])
    assert time.process_time() - began < 3


def test_a_setting_covers_what_is_below_a_folder_too() -> None:
    patterns = Patterns(["tests/", "*.gen.py", "!keep.gen.py"])
    assert patterns.cover("src/tests/unit/a.py")
    assert patterns.cover("/src/b.gen.py")
    assert not patterns.cover("src/keep.gen.py")
    assert not patterns.cover("src/tests")
    assert not Patterns(["", "# words", "!", "\\", "[", "a[!"])
