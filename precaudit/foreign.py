"""Parses JSON, TOML and YAML that others wrote: whatever a parser raises is a ForeignError of one line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

MAX_YAML_LEVELS = 2000
"""Brackets and columns up to which C's YAML loader is asked; it overflows the stack where Python's raises."""


class ForeignError(Exception):
    """A text that is not what it should be; `str()` is one line that says why."""


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ForeignError."""
    import json

    return _parsed(json.loads, text)


def parse_toml(text: str) -> dict[str, Any]:
    """The table of a TOML text. Raises ForeignError."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    found: dict[str, Any] = _parsed(tomllib.loads, text)
    return found


def parse_yaml(text: str) -> Any:
    """The value of a YAML text of one document. Raises ForeignError."""
    import yaml

    deep = text.count("[") + text.count("{") + max(map(len, text.splitlines()), default=0) > MAX_YAML_LEVELS
    loader = yaml.SafeLoader if deep else getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return _parsed(lambda one: yaml.load(one, loader), text)


def _parsed(parse: Callable[[Any], Any], text: str | bytes) -> Any:
    try:
        return parse(text)
    except RecursionError:
        raise ForeignError("nested too deeply") from None
    except Exception as error:  # scalars whose tag does not fit raise KeyError, IndexError and what else there is
        raise ForeignError(_reason(error)) from None


def _reason(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)  # YAML's
    if mark is not None:
        return f"line {mark.line + 1}: {getattr(error, 'problem', None) or 'cannot be parsed'}"
    if isinstance(error, ValueError):
        return " ".join(str(error).split())[:300] or "cannot be parsed"
    return "a value that its type does not allow"
