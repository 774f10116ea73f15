"""Reads what a project allows its runs: `[tool.precaudit.contract]`, its profile, and `[[tool.precaudit.allow]]`."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from datetime import date, datetime
from functools import cache
from pathlib import Path
from typing import Any

from precaudit.allowed.contract import BLOCKWISE, NOTHING, Allowance, Clause, Contract, Pattern, lines_of
from precaudit.disk import read_text
from precaudit.errors import ConfigError, RuleError
from precaudit.foreign import ForeignError, parse_toml
from precaudit.model.vocabulary import FLOATING, Role
from precaudit.rulebook import Rulebook
from precaudit.settings import Settings
from precaudit.shipped import rules_folder

ROLES: Mapping[str, Role] = {role.value: role for role in Role}
DTYPES = (*FLOATING, f"int8{BLOCKWISE}", f"float8_e4m3fn{BLOCKWISE}")
CONTRACT = "[tool.precaudit.contract]"
MODULES = "[[tool.precaudit.contract.modules]]"
ALLOW = "[[tool.precaudit.allow]]"
NEEDED = {"rule": '"PA301"', "reason": '"measured over 10,000 steps: no loss"', "expires": "2027-06-30"}
"""Keys that each allowance has, with an example."""


def contract_of(settings: Settings, book: Rulebook, today: date | None = None) -> Contract:
    """What these settings allow. Raises ConfigError, one line, for what cannot be meant."""
    if not settings.contract and not settings.allow:
        return NOTHING
    source = settings.source
    name = source.name if source is not None else "pyproject.toml"
    text = ""
    if source is not None:
        try:
            text = read_text(source)
        except OSError as error:
            raise ConfigError(f"{source}: cannot be read: {error.strerror}") from None
    lines = lines_of(text, ALLOW)
    if len(lines) != len(settings.allow):  # written another way: allow = [{...}]
        lines = [0] * len(settings.allow)
    return Contract(
        tuple(_clauses(settings.contract, name)),
        tuple(_allowance(raw, line, name, book) for raw, line in zip(settings.allow, lines, strict=True)),
        str(source) if source is not None else name,
        today or date.today(),
    )


def _clauses(table: Mapping[str, Any], name: str) -> Iterator[Clause]:
    rest = dict(table)
    yield from _profile(rest.pop("profile", ""), f"{name}: {CONTRACT} profile")
    rows = rest.pop("modules", [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ConfigError(f"{name}: {CONTRACT} modules: tables are expected, each below {MODULES}")
    yield from _roles(rest, f"{name}: {CONTRACT}", f"the contract in {name} allows it")
    for row in rows:
        where = f"{name}: {MODULES}"
        narrow = {key: _text(row, key, where) for key in ("module", "slot") if key in row}
        if not narrow:
            raise ConfigError(f"{where}: names neither module nor slot; put its roles into {CONTRACT}, or name one")
        roles = {key: value for key, value in row.items() if key not in narrow}
        there = ", ".join(f"{key} {value}" for key, value in narrow.items())
        yield from _roles(roles, where, f"the contract in {name} allows it in {there}", **narrow)


def _roles(table: Mapping[str, Any], where: str, because: str, **narrow: str) -> Iterator[Clause]:
    if "because" in table:
        because = f"{because}: {_text(table, 'because', where)}"
    for key, value in table.items():
        if key == "because":
            continue
        if key not in ROLES:
            near = difflib.get_close_matches(key, ROLES, n=1)
            others = "" if narrow else "profile, modules, "
            hint = f"did you mean '{near[0]}'?" if near else f"allowed: {others}because, {', '.join(ROLES)}"
            raise ConfigError(f"{where} {key}: not a role; {hint}")
        dtypes = [value] if isinstance(value, str) else value
        if not isinstance(dtypes, list) or not dtypes or not all(isinstance(one, str) for one in dtypes):
            raise ConfigError(f'{where} {key}: dtypes are expected, such as ["float32", "bfloat16"]')
        for dtype in dtypes:
            if dtype not in DTYPES:
                near = difflib.get_close_matches(dtype, DTYPES, n=1)
                hint = f"did you mean '{near[0]}'?" if near else f"allowed: {', '.join(DTYPES)}"
                raise ConfigError(f"{where} {key}: '{dtype}' is not a dtype; {hint}")
        yield Clause(ROLES[key], frozenset(dtypes), because, Pattern(**narrow))


def _text(table: Mapping[str, Any], key: str, where: str) -> str:
    value = table.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{where} {key}: a text is expected")
    return value.strip()


# ---------------------------------------------------------------------------------------------- profiles


@cache
def profiles() -> Mapping[str, Path]:
    """The profiles that ship with precaudit, by name."""
    folder = rules_folder() / "profiles" / "contracts"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def _profile(name: Any, where: str) -> Iterator[Clause]:
    if isinstance(name, list) and len(name) != 1:
        raise ConfigError(
            f"{where}: {len(name)} profiles, and a contract has one; name one, and write the roles of the others out"
        )
    name = name[0] if isinstance(name, list) else name
    if not isinstance(name, str):
        raise ConfigError(f"{where}: the name of a profile is expected; allowed: {', '.join(profiles())}")
    if not name:
        return
    if name not in profiles():
        near = difflib.get_close_matches(name, profiles(), n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"allowed: {', '.join(profiles())}"
        raise ConfigError(f"{where}: '{name}' is not a profile; {hint}")
    yield from read_profile(profiles()[name])


def read_profile(path: Path) -> list[Clause]:
    """The clauses of one profile. Raises RuleError, one line, for a file that is none."""
    short = "/".join(path.parts[-3:])
    try:
        raw = parse_toml(read_text(path))
    except OSError as error:
        raise RuleError(f"{short}: cannot be read: {error.strerror}") from None
    except ForeignError as error:
        raise RuleError(f"{short}: not valid TOML: {error}") from None
    clauses: list[Clause] = []
    try:
        _text(raw, "title", short)
        for row in raw.get("allow", []):
            because = f"profile {path.stem}: {_text(row, 'because', short)}"
            clauses += _roles({k: v for k, v in row.items() if k != "because"}, short, because)
        if unknown := sorted(set(raw) - {"title", "references", "allow"}):
            raise ConfigError(f"{short} {unknown[0]}: no such key; allowed: title, references, allow")
    except ConfigError as error:
        raise RuleError(str(error)) from None
    return clauses


# ---------------------------------------------------------------------------------------------- allowances


def _allowance(raw: Mapping[str, Any], line: int, name: str, book: Rulebook) -> Allowance:
    where = f"{name}:{line}: {ALLOW}" if line else f"{name}: {ALLOW}"
    known = ("rule", "module", "reason", "expires")
    for key in raw:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"keys: {', '.join(known)}"
            raise ConfigError(f"{where} {key}: unknown key; {hint}")
    for key, example in NEEDED.items():
        if key not in raw:
            raise ConfigError(f"{where}: names no {key}; add {key} = {example}")
    rule = _text(raw, "rule", where)
    try:
        rules = frozenset(book.select([rule]))
    except RuleError as error:
        raise ConfigError(f"{where} rule: {error}") from None
    module = _text(raw, "module", where) if "module" in raw else "*"
    return Allowance(rules, rule, module, _text(raw, "reason", where), _day(raw["expires"], where), line)


def _day(value: Any, where: str) -> date:
    if isinstance(value, datetime):
        return value.date()
    if isinstance(value, date):
        return value
    try:
        return date.fromisoformat(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{where} expires: {value!r} is not a day; write it as in expires = 2027-06-30") from None
