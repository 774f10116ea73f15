"""Every error a user can meet: one line that says where, what, what is allowed and the way out."""

from __future__ import annotations

import os

INTERNAL_ERROR = 3
"""The exit code of a mistake of ours."""


class PrecauditError(Exception):
    """A mistake the user can mend; `cli.main` prints its one line after `precaudit: ` and exits with `exit_code`."""

    slug = "error"
    exit_code = 2


class UsageError(PrecauditError):
    """The command line, a path or an option cannot be used as given."""

    slug = "usage"


class ConfigError(PrecauditError):
    """A configuration file or value cannot be used as written."""

    slug = "config"


class RuleError(PrecauditError):
    """A rule file is not a rule, or no rule has the name asked for."""

    slug = "rule"


class OutputError(PrecauditError):
    """A report cannot be written where it was asked for."""

    slug = "output"


class ReportError(PrecauditError):
    """A file that should hold a report or a rank's observations cannot be read as one."""

    slug = "report"


class LockError(PrecauditError):
    """A precision.lock cannot be read, or is of another training."""

    slug = "lock"


class FindingsError(PrecauditError):
    """A report has findings where the caller asked for none; the message is the report's text."""

    slug = "findings"
    exit_code = 1


def internal_error(error: Exception) -> str:
    """One line on a mistake of ours; raises it where PRECAUDIT_TRACEBACK is set."""
    if os.environ.get("PRECAUDIT_TRACEBACK"):
        raise error
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    at = f" at {os.path.basename(frame.tb_frame.f_code.co_filename)}:{frame.tb_lineno}" if frame else ""
    text = " ".join(str(error).split())[:300]
    return (
        f"internal error{at}: {type(error).__name__}: {text}; this is a bug of precaudit: "
        "set PRECAUDIT_TRACEBACK=1 to see the traceback, and please report it"
    )
