"""One module opens and writes; what it refuses, and that nothing else in the package does either."""

from __future__ import annotations

import ast
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from precaudit import disk, foreign

PACKAGE = Path(disk.__file__).parent
OPENS = {
    "open", "read_text", "read_bytes", "write_text", "write_bytes", "fdopen", "open_code", "mkstemp", "mkdtemp",
    "NamedTemporaryFile", "TemporaryFile", "TemporaryDirectory", "mmap", "copy", "copyfile", "copy2", "copytree",
    "rmtree", "symlink", "symlink_to", "truncate", "mkfifo", "FileIO",
}  # fmt: skip
"""Names of functions and methods that open, read or write a file."""
ELSEWHERE = {
    "disk.py": "it is the one",
    "cli.py": "/dev/null, for a reader that has gone",
    "commands/report.py": "webbrowser.open",
    "checkpoint/archive.py": "a member of an archive that is open",
    "integrations/mcp.py": "a folder of its own, for the report of the trace that it starts",
    "launch/bootstrap.py": "the private folder, which nobody else can write to",
    "model/frameworks.py": "what is shipped, in the traced process too",
    "preflight/autocast.py": "in the traced process: a header of the installed torch",
    "preflight/room.py": "addresses without memory; no file",
    "report/page/frame.py": "what is shipped beside it",
    "run.py": "in the traced process, before anything of ours is loaded; the script is opened as Python does",
    "runtime/sitecustomize.py": "in the traced process, where nothing may be imported",
    "runtime/exact/exchange.py": "in the traced process: the companions that ranks show each other",
    "runtime/process/peers.py": "in the traced process: the files by which ranks stop together",
    "runtime/process/rankfile.py": "in the traced process: what it saw",
    "runtime/recorder.py": "in the traced process: what it computes, for --verify-undisturbed",
}
"""File -> why it opens or writes by itself."""
OURS = {"disk.read_text", "read_text"}
"""The one module's own."""


def opening(path: Path) -> Iterator[str]:
    """The calls in a file that open, read or write one."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func).rpartition(".")[2]
            # Those of the one module are fine; `.copy()` without an argument copies no file.
            ours = ast.unparse(node.func) in OURS
            if name in OPENS and not ours and (name != "copy" or len(node.args) > 1):
                yield f"{path.relative_to(PACKAGE)}:{node.lineno}: {ast.unparse(node.func)}"


def test_nothing_else_in_the_package_opens_or_writes_a_file() -> None:
    found = {path.relative_to(PACKAGE).as_posix(): list(opening(path)) for path in sorted(PACKAGE.rglob("*.py"))}
    assert [call for file, calls in found.items() if file not in ELSEWHERE for call in calls] == []
    assert [file for file in ELSEWHERE if not found.get(file)] == [], "these need no row any more"


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A folder with everything that is no regular file."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "to pipe").symlink_to(tmp_path / "pipe")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("pipe", "not a regular file"),
        ("to pipe", "not a regular file"),
        ("folder", "not a regular file"),
        ("zero", "not a regular file"),
        ("nowhere", "No such file or directory"),
        ("loop", "Too many levels of symbolic links"),
        ("a" * 3000, "File name too long"),
        ("null\0byte", "embedded null byte"),
    ],
)
def test_only_a_regular_file_is_opened_and_nothing_is_waited_for(odd: Path, name: str, reason: str) -> None:
    with pytest.raises(OSError, match=reason):
        disk.read(odd / name)


def test_no_more_than_the_limit_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 1000)
    assert disk.read(tmp_path / "file", limit=1000) == b"x" * 1000
    with pytest.raises(OSError, match="too large") as caught:
        disk.read(tmp_path / "file", limit=999)
    assert caught.value.strerror == "too large: 0 MB"


def test_a_file_that_says_it_is_empty_is_read_all_the_same() -> None:
    assert b"Name" in disk.read("/proc/self/status")


@pytest.mark.parametrize("planted", ["link", "pipe", "dangling"])
def test_what_stands_in_the_way_is_replaced_and_not_written_through(tmp_path: Path, planted: str) -> None:
    victim = tmp_path / "victim"
    home = tmp_path / "home"
    home.mkdir()
    place = home / "report.json"
    if planted == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to(victim)
    if planted == "link":
        victim.write_text("precious")
    disk.write(place, "new", home)
    assert (place.read_text(), place.is_symlink()) == ("new", False)
    assert victim.read_text() == "precious" if planted == "link" else not victim.exists()
    assert os.listdir(home) == ["report.json"]


def test_nothing_is_written_below_a_folder_that_is_a_link(tmp_path: Path) -> None:
    outside, home = tmp_path / "outside", tmp_path / "home"
    outside.mkdir()
    home.mkdir()
    (home / "latest").symlink_to(outside)
    with pytest.raises(OSError, match=f"{home}/latest is a link"):
        disk.write(home / "latest" / "report.json", "new", home)
    with pytest.raises(OSError, match="leads out of its folder"):
        disk.write(home / ".." / "outside" / "x", "new", home)
    assert os.listdir(outside) == []


def test_a_file_of_the_project_keeps_its_mode_and_a_link_is_not_rewritten(tmp_path: Path) -> None:
    script, link = tmp_path / "run.py", tmp_path / "link.py"
    script.write_text("old")
    script.chmod(0o750)
    link.symlink_to(script)
    disk.rewrite(script, b"new")
    assert (script.read_text(), stat.S_IMODE(script.stat().st_mode)) == ("new", 0o750)
    with pytest.raises(OSError, match=f"it is a link to {script}; name the file itself"):
        disk.rewrite(link, b"newer")
    assert script.read_text() == "new"


def test_a_user_may_name_a_link_or_a_device(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "real")
    disk.write_named(link, "text")
    assert link.is_symlink()
    assert (tmp_path / "real").read_text() == "text"
    program = "from pathlib import Path; from precaudit import disk; disk.write_named(Path('/dev/stdout'), 'text')"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout == b"text"


def test_a_full_disk_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    program = (
        "import resource, signal, sys; from pathlib import Path; from precaudit import disk\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))\n"
        f"for write in (lambda: disk.write(Path({str(tmp_path)!r}, 'file'), 'x' * 99, Path({str(tmp_path)!r})),\n"
        f"              lambda: disk.try_writing(Path({str(tmp_path)!r}))):\n"
        "    try: write()\n"
        "    except OSError as error: print(error.strerror)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "File too large\nFile too large\n"
    assert (os.listdir(tmp_path), (tmp_path / "file").read_text()) == (["file"], "old")


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (foreign.parse_json, "["),
        (foreign.parse_json, "[" * 200_000),
        (foreign.parse_json, "9" * 5000),
        (foreign.parse_json, b"\xff\xfe\xff"),
        (foreign.parse_toml, "a = "),
        (foreign.parse_toml, "a = " + "[" * 100_000),
        (foreign.parse_toml, "a = 9999-99-99"),
        (foreign.parse_yaml, "a: ["),
        (foreign.parse_yaml, "[" * 100_000),
        (foreign.parse_yaml, "- " * 50_000 + "x"),
        (foreign.parse_yaml, '!!int ""'),
        (foreign.parse_yaml, "!!bool x"),
        (foreign.parse_yaml, "!!timestamp x"),
        (foreign.parse_yaml, '!!float ""'),
        (foreign.parse_yaml, "!!binary ä"),
        (foreign.parse_yaml, "? {a: b}\n: c"),
        (foreign.parse_yaml, "!!python/object/apply:os.system [true]"),
        (foreign.parse_yaml, "a: 1\n---\nb: 2"),
        (foreign.parse_yaml, "a: \x07"),
    ],
)
def test_whatever_a_parser_raises_is_one_line(parse: foreign.Callable[[object], object], text: object) -> None:
    with pytest.raises(foreign.ForeignError) as caught:
        parse(text)
    assert str(caught.value).strip()
    assert "\n" not in str(caught.value)
