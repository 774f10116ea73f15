"""The files of frameworks' words: each can be read, says where it is from, and means the same to a traced command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from precaudit.launch.bootstrap import PACKAGE, TraceSettings, private_folder
from precaudit.model import frameworks
from precaudit.model.frameworks import FOLDER, all_frameworks, framework
from precaudit.model.vocabulary import FLOATING

NAMES = sorted(path.stem for path in FOLDER.glob("*.toml"))


@pytest.mark.parametrize("name", NAMES)
def test_a_file_names_its_framework_the_versions_it_was_read_from_and_known_dtypes(name: str) -> None:
    found = framework(name)
    assert found.title
    assert all(version[:1].isdigit() for version in found.versions.values())
    assert found.versions
    for asked in found.precision.values():
        assert asked.dtype in FLOATING
        assert asked.how in ("autocast", "parameters", "engine")


def test_all_files_are_found() -> None:
    assert [one.name for one in all_frameworks()] == NAMES


def test_a_traced_command_gets_the_same_words(monkeypatch: pytest.MonkeyPatch) -> None:
    with private_folder(TraceSettings(cwd="/")) as folder:
        inside = folder.path / PACKAGE / "frameworks"
        assert sorted(path.stem for path in inside.iterdir()) == NAMES
        there = {name: json.loads((inside / f"{name}.json").read_text()) for name in NAMES}
    assert there == {name: frameworks._load_toml(FOLDER / f"{name}.toml") for name in NAMES}


def test_words_that_came_as_json_are_read_without_toml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny.json").write_text('{"title": "Tiny", "versions": {"tiny": "1"}, "trainers": ["tiny.Trainer"]}')
    monkeypatch.setattr(frameworks, "FOLDER", tmp_path)
    monkeypatch.setattr(frameworks, "_load_toml", None)
    assert frameworks.framework("tiny").named("trainers") == ("tiny.Trainer",)
