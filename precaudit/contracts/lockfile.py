"""`precision.lock`: a Precision as TOML that reads well in a review; the same bytes for the same run."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from precaudit.contracts.precision import Dtypes, Precision
from precaudit.disk import read_text
from precaudit.errors import LockError
from precaudit.foreign import ForeignError, parse_toml
from precaudit.model.vocabulary import Role

FORMAT = 1
NAME = "precision.lock"
HEAD = """\
# The precision this training is held to, written by `precaudit lock`.
# `precaudit trace --locked` fails where a run differs; add --update-lock to accept what it does now.
"""
AGAIN = 'make it anew with "precaudit lock"'
BARE = re.compile(r"[A-Za-z0-9_-]+")
MARKS = ("several_ranks", "preflight")
"""What a run was, where it was that."""
TABLES = ("setup", "versions", "roles", "declared")


def write(precision: Precision) -> str:
    """The text of the lock."""
    lines = [HEAD, f"format = {FORMAT}", f"script = {_string(precision.script)}"]
    lines += [f"{name} = true" for name in MARKS if getattr(precision, name)]
    for title in ("setup", "versions"):
        table: Mapping[str, str] = getattr(precision, title)
        lines += ["", f"[{title}]", *(f"{_key(name)} = {_string(table[name])}" for name in sorted(table))]
    for title in ("roles", "declared"):
        held: Mapping[str, Dtypes] = getattr(precision, title)
        if held:
            lines += ["", f"[{title}]", *(f"{_key(role)} = {_dtypes(held[role])}" for role in sorted(held))]
    for kinds, names in _alike(precision.tensors):
        lines += ["", "[[tensors]]", "names = [", *(f"    {_string(name)}," for name in names), "]"]
        lines += [f"{_key(what)} = {_dtypes(dtypes)}" for what, dtypes in kinds]
    return "\n".join(lines) + "\n"


def read(path: Path) -> Precision:
    """The Precision that the lock at `path` holds. Raises LockError, one line, for a file that is none."""
    if not os.path.lexists(path):
        raise LockError(f'{path}: no such lock; make it with "precaudit lock"')
    try:
        raw = parse_toml(read_text(path))
    except OSError as error:
        raise LockError(f"{path}: cannot be read: {error.strerror}") from None
    except ForeignError as error:
        raise LockError(f"{path}: not TOML: {error}; {AGAIN}") from None
    return _checked(path, raw)


def _checked(path: Path, raw: Mapping[str, Any]) -> Precision:
    version = raw.get("format")
    if version != FORMAT:
        what = "has no format" if version is None else f"is of format {version!r}"
        raise LockError(f"{path}: {what}, and this precaudit reads format {FORMAT}; {AGAIN}")
    known = {"format", "script", "tensors", *MARKS, *TABLES}
    if unknown := sorted(set(raw) - known):
        raise LockError(f"{path}: {unknown[0]}: no such entry; allowed: {', '.join(sorted(known))}; {AGAIN}")
    script = raw.get("script")
    if not isinstance(script, str):
        raise LockError(f'{path}: script: must be a string such as "train.py"; {AGAIN}')
    roles, declared = (_role_table(path, title, raw.get(title, {})) for title in ("roles", "declared"))
    return Precision(
        script=script,
        setup=_strings(path, "setup", raw.get("setup", {})),
        versions=_strings(path, "versions", raw.get("versions", {})),
        roles=roles,
        declared=declared,
        tensors=_tensors(path, raw.get("tensors", [])),
        **{name: raw.get(name) is True for name in MARKS},
    )


def _strings(path: Path, title: str, table: Any) -> dict[str, str]:
    if not isinstance(table, dict) or not all(isinstance(value, str) for value in table.values()):
        raise LockError(f"{path}: {title}: must be a table of strings; {AGAIN}")
    return dict(table)


def _role_table(path: Path, title: str, table: Any) -> dict[str, Dtypes]:
    if not isinstance(table, dict):
        raise LockError(f"{path}: {title}: must be a table of role = dtype; {AGAIN}")
    roles = {role.value for role in Role}
    for role in table:
        if role not in roles:
            raise LockError(f"{path}: {title}.{role}: no such role; allowed: {', '.join(sorted(roles))}")
    return {role: _some(path, f"{title}.{role}", value) for role, value in table.items()}


def _tensors(path: Path, rows: Any) -> dict[str, dict[str, Dtypes]]:
    if not isinstance(rows, list):
        raise LockError(f"{path}: tensors: must be [[tensors]] tables; {AGAIN}")
    found: dict[str, dict[str, Dtypes]] = {}
    for row in rows:
        names = row.get("names") if isinstance(row, dict) else None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise LockError(f"{path}: tensors.names: must be a list of names; {AGAIN}")
        kinds = {what: _some(path, f"tensors.{what}", value) for what, value in row.items() if what != "names"}
        for name in names:
            if name in found:
                raise LockError(f"{path}: tensors: {name} stands there twice; leave one of them")
            found[name] = kinds
    return found


def _some(path: Path, where: str, value: Any) -> Dtypes:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not values or not all(isinstance(one, str) for one in values):
        raise LockError(f'{path}: {where}: must be a dtype such as "float32", or a list of them')
    return tuple(sorted(values))


def _alike(tensors: Mapping[str, Mapping[str, Dtypes]]) -> Iterable[tuple[list[tuple[str, Dtypes]], list[str]]]:
    """Tensors that hold the same, together: (what they hold, their names)."""
    groups: dict[tuple[tuple[str, Dtypes], ...], list[str]] = {}
    for name in sorted(tensors):
        groups.setdefault(tuple(sorted(tensors[name].items())), []).append(name)
    for kinds, names in sorted(groups.items(), key=lambda group: group[1]):
        yield sorted(kinds, key=lambda kind: (kind[0] not in ("weight", "gradient"), kind[0] != "weight", kind)), names


def _dtypes(dtypes: Dtypes) -> str:
    if len(dtypes) == 1:
        return _string(dtypes[0])
    return f"[{', '.join(map(_string, dtypes))}]"


def _key(name: str) -> str:
    return name if BARE.fullmatch(name) else _string(name)


def _string(text: str) -> str:
    """A TOML basic string; JSON's escapes are TOML's, but for DEL, which TOML wants escaped."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
