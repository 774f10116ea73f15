"""Launcher lines of shell scripts beside a script: the files that they name, against what the script asks for."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from precaudit.foreign import ForeignError, parse_json, parse_yaml
from precaudit.model.vocabulary import Kind
from precaudit.static.files import configs
from precaudit.static.language.values import Const, Spot, Value, constant

if TYPE_CHECKING:
    from precaudit.static.overlays.run import Run

MODES = ("fp16", "fp16_full_eval", "bf16", "bf16_full_eval")
MAX_SCRIPTS = 20
WORD = re.compile(r"[^\s\"']+")
TRUE = ("True", "true", "1", "")


class Line(NamedTuple):
    """One command: where it stands, and the value of each of its flags, "" for one without."""

    place: str
    flags: Mapping[str, str]


def enabled(config: Mapping[str, Any]) -> dict[str, bool]:
    """Which modes a DeepSpeed config switches on or off; one that it leaves to the script ("auto") is not there."""
    found = {}
    for mode in ("fp16", "bf16"):
        section = config.get(mode)
        wanted = section.get("enabled") if isinstance(section, Mapping) else None
        if isinstance(wanted, bool):
            found[mode] = wanted
    return found


def left_to_the_script(config: Mapping[str, Any], arguments: Mapping[str, Value]) -> Iterator[configs.Remark]:
    """What a DeepSpeed config says of sums over micro-batches once its "auto" is what the arguments say."""
    many = config.get("gradient_accumulation_steps")
    section = config.get("bf16")
    auto = isinstance(section, Mapping) and section.get("enabled") == "auto"
    if many != "auto" and not auto:
        return  # the file says it by itself, and is told of at its own lines
    given = constant(arguments.get("gradient_accumulation_steps", Const(1)))
    whole = {**config, "gradient_accumulation_steps": given if many == "auto" else many}
    if auto and constant(arguments.get("bf16")) is True:
        whole["bf16"] = {"enabled": True}
    yield from (r for r in configs.deepspeed(whole) if r.attrs.get("many_micro_batches") and r.keys[0] == "bf16")


def compare(run: Run) -> None:
    """Holds what the script asks for against the files that its launcher lines name."""
    held = run.training
    asked = [
        *((spot, {"mixed_precision": mode}) for spot, mode in held.accelerators),
        *((_spot(made), _precision(made.store)) for made in held.arguments if "\0spot" in made.store),
    ]
    if not asked and not held.from_command_line:
        return
    source = (asked[0][0] if asked else held.from_command_line[0]).source
    for line in _lines(run, source):
        for spot, wanted in asked:
            _against_accelerate(run, spot, wanted.get("mixed_precision", ""), line)
        for spot in held.from_command_line:
            _against_deepspeed(run, spot, line)
            modes = [mode for mode in ("fp16", "bf16") if line.flags.get(mode) in TRUE]
            _against_accelerate(run, spot, modes[0] if len(modes) == 1 else "", line)


def _spot(made: Any) -> Spot:
    found: Spot = made.store["\0spot"]
    return found


def _precision(store: Mapping[Any, Any]) -> dict[str, str]:
    on = [mode for mode in ("fp16", "bf16") if constant(store.get(mode)) is True]
    return {"mixed_precision": on[0]} if len(on) == 1 else {}


def _against_deepspeed(run: Run, spot: Spot, line: Line) -> None:
    """`--deepspeed ds.json --bf16 True`: transformers refuses two that differ."""
    config = _read(run, spot, line.flags.get("deepspeed", ""))
    for mode, wanted in enabled(config).items():
        if wanted != (line.flags.get(mode) in TRUE):
            told = (
                f"{line.place}: {line.flags['deepspeed']} says {mode}.enabled: {str(wanted).lower()}, the flags do not"
            )
            run.facts.add(Kind.CONFIG, spot, "", None, None, told, mismatch=True, key=mode)
            return


def _against_accelerate(run: Run, spot: Spot, mode: str, line: Line) -> None:
    """`accelerate launch --config_file fp16.yaml` of a script that asks for bfloat16 itself, which wins."""
    if mode not in ("fp16", "bf16"):
        return
    config = _read(run, spot, line.flags.get("config_file", ""))
    other = line.flags.get("mixed_precision") or config.get("mixed_precision")
    if other in ("fp16", "bf16") and other != mode:
        by = line.flags.get("config_file") or "--mixed_precision"
        told = f"{line.place}: {by} says {other}, the script {mode}"
        run.facts.add(Kind.CONFIG, spot, "", None, None, told, mismatch=True, key="mixed_precision")
        return
    inner = config.get("deepspeed_config")
    named = inner.get("deepspeed_config_file") if isinstance(inner, Mapping) else None
    for other, wanted in enabled(_read(run, spot, str(named or ""))).items():
        if wanted != (other == mode):
            told = f"{line.place}: {named} says {other}.enabled: {str(wanted).lower()}, the script {mode}"
            run.facts.add(Kind.CONFIG, spot, "", None, None, told, mismatch=True, key=other)
            return


def _read(run: Run, spot: Spot, name: str) -> Mapping[str, Any]:
    """A JSON or YAML file of settings by its path on a command line; empty where it cannot be read."""
    parse = parse_json if name.endswith(".json") else parse_yaml if name.endswith((".yaml", ".yml")) else None
    raw = run.read_beside(spot.source, name) if parse is not None else None
    if raw is None or parse is None or len(raw) > configs.LARGEST_CONFIG:
        return {}
    try:
        found = parse(raw.decode("utf-8-sig"))
    except (UnicodeDecodeError, ForeignError):
        return {}
    return found if isinstance(found, Mapping) else {}


def _lines(run: Run, source: Any) -> Iterator[Line]:
    """The commands of shell scripts beside a script that run it."""
    if source.file is None:
        return
    try:
        names = sorted(name for name in os.listdir(source.file.parent) if name.endswith(".sh"))
    except OSError:
        return
    for name in names[:MAX_SCRIPTS]:
        raw = run.read_beside(source, name)
        for number, line in _commands((raw or b"").decode("utf-8", "replace")):
            words = WORD.findall(line)
            if any(os.path.basename(word) == source.file.name for word in words):
                yield Line(f"{name}:{number}", _flags(words))


def _commands(text: str) -> Iterator[tuple[int, str]]:
    """(number of its first line, command), continued lines joined, comments left out."""
    begun, held = 0, ""
    for number, line in enumerate(text.splitlines(), 1):
        begun = begun or number
        held += line.rstrip("\\") + " "
        if not line.endswith("\\"):
            if not held.lstrip().startswith("#"):
                yield begun, held
            begun, held = 0, ""


def _flags(words: list[str]) -> dict[str, str]:
    found = {}
    for word, following in zip(words, [*words[1:], "--"], strict=True):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            found[name.replace("-", "_")] = value if equals else "" if following.startswith("-") else following
    return found
