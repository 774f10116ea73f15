"""Where the files are that ship with precaudit, for those who do not need the whole rulebook."""

from __future__ import annotations

from pathlib import Path

from precaudit.errors import RuleError


def rules_folder() -> Path:
    """Where the rule files are: inside the installed package, or in the checkout beside it."""
    package = Path(__file__).resolve().parent
    for folder in (package / "rules", package.parent / "rules"):
        if (folder / "profiles").is_dir():
            return folder
    raise RuleError(f"no rules folder in {package} or beside it; reinstall precaudit")
