"""Every error a user can meet: one line that says where, what, what is allowed and the way out."""

from __future__ import annotations


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
