"""Holds a build to its tag: where HEAD is tagged `v1.2.3`, precaudit/__init__.py says 1.2.3, or nothing is built."""

from __future__ import annotations

import subprocess
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class TagHook(BuildHookInterface):  # type: ignore[type-arg]
    """Refuses to build a version under another version's tag; outside of a git checkout there is no tag to ask."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        tags = _tags(self.root)
        wanted = f"v{self.metadata.version}"
        if tags and wanted not in tags:
            raise SystemExit(
                f"precaudit/__init__.py: __version__ is {self.metadata.version}, and this commit is tagged "
                f"{', '.join(tags)}; set the version, or tag the commit {wanted}"
            )


def _tags(root: str) -> list[str]:
    """The version tags of HEAD; none where git does not answer."""
    try:
        done = subprocess.run(
            ["git", "tag", "--points-at", "HEAD", "--list", "v[0-9]*"],
            cwd=root,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return []
    return done.stdout.split() if done.returncode == 0 else []
