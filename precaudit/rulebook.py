"""Reads `rules/`: one TOML per rule, and the document's role table under `profiles/`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from precaudit.disk import read_text
from precaudit.errors import RuleError
from precaudit.foreign import ForeignError, parse_toml
from precaudit.model.vocabulary import FLOATING, LOW, Kind, Role
from precaudit.model.wire import RoleRow, Rule
from precaudit.shipped import rules_folder

GROUPS: Mapping[str, frozenset[str]] = {"low": LOW, "high": frozenset(FLOATING) - LOW}
"""Names that stand for several dtypes in `allow` and `forbid`."""


class Rulebook:
    """The rules by id, and the role table."""

    def __init__(self, rules: Iterable[Rule], roles: Iterable[RoleRow]) -> None:
        self.rules: dict[str, Rule] = {rule.id: rule for rule in rules}
        self.roles: dict[Role, RoleRow] = {row.role: row for row in roles}

    def find(self, name: str) -> Rule:
        """The rule with this id (in either case) or name. Raises RuleError naming the nearest one and the list."""
        for rule in self.rules.values():
            if name.upper() == rule.id or name == rule.name:
                return rule
        raise self._unknown(name)

    def select(self, prefixes: Iterable[str]) -> set[str]:
        """The ids these ids, names or prefixes (`PA3`) choose. Raises RuleError for one that chooses none."""
        chosen: set[str] = set()
        for prefix in prefixes:
            if prefix == "ALL":
                found = set(self.rules)
            else:
                found = {r.id for r in self.rules.values() if r.id.startswith(prefix) or r.name == prefix}
            if not found:
                raise self._unknown(prefix)
            chosen |= found
        return chosen

    def _unknown(self, name: str) -> RuleError:
        near = difflib.get_close_matches(name, [rule.name for rule in self.rules.values()], n=1, cutoff=0.75)
        hint = f"did you mean '{near[0]}'? " if near else ""
        return RuleError(f"no rule matches '{name}'; {hint}run \"precaudit rules\" for the list")


def dtypes(names: Iterable[str]) -> frozenset[str]:
    """The dtype names that a rule's `allow` or `forbid` list stands for."""
    out: set[str] = set()
    for name in names:
        out |= GROUPS.get(name, frozenset({name}))
    return frozenset(out)


@cache
def load() -> Rulebook:
    """The rulebook that ships with precaudit."""
    return load_folder(rules_folder())


def load_folder(folder: Path) -> Rulebook:
    """Reads every `PA*.toml` and `profiles/document.toml` of a folder. Raises RuleError, one line, for a bad file."""
    rules = [load_rule(path) for path in sorted(folder.glob("PA*.toml"))]
    table = _parse(folder / "profiles" / "document.toml").get("roles", [])
    rows = [_validated(RoleRow, row, folder / "profiles" / "document.toml") for row in table]
    return Rulebook(rules, rows)


def load_rule(path: Path) -> Rule:
    """Reads one rule file, whose name must be `<id>-<name>.toml`. Raises RuleError."""
    rule: Rule = _validated(Rule, _parse(path), path)
    if path.stem != f"{rule.id}-{rule.name}":
        raise RuleError(
            f"{_short(path)}: id and name say '{rule.id}-{rule.name}'; rename the file to that, or mend them"
        )
    return rule


def _parse(path: Path) -> dict[str, Any]:
    try:
        return parse_toml(read_text(path))
    except OSError as error:
        raise RuleError(f"{_short(path)}: cannot be read: {error.strerror}") from None
    except ForeignError as error:
        raise RuleError(f"{_short(path)}: not valid TOML: {error}") from None


def _validated(model: Any, raw: dict[str, Any], path: Path) -> Any:
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise RuleError(f"{_short(path)}: {_explain(error, model)}") from None


def _explain(error: ValidationError, model: Any) -> str:
    """The first of pydantic's complaints in one line, with a suggestion where a word is nearly right."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "the file"
    value = first.get("input")
    words: list[str] = []
    if first["loc"] and first["loc"][0] == "role":
        where, words, noun = "role", [role.value for role in Role], "a role"
    elif first["loc"] and first["loc"][0] == "fact":
        words, noun = [kind.value for kind in Kind], "a kind of fact"
    elif first["type"] == "extra_forbidden":
        where, value = "key", first["loc"][-1]
        words, noun = list(model.model_fields), "a key of a rule"
    else:
        return f"{where}: {first['msg'][0].lower()}{first['msg'][1:]}"
    near = difflib.get_close_matches(str(value), words, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else f"; allowed: {', '.join(words)}"
    return f"{where}: '{value}' is not {noun}{hint}"


def _short(path: Path) -> str:
    return "/".join(path.parts[-3:] if path.parent.name == "profiles" else path.parts[-2:])
