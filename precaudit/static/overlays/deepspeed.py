"""DeepSpeed: what its config says, as a dict of the file or a JSON beside it, and that the engine takes over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import libcst as cst

from precaudit.static.files import configs
from precaudit.static.language.values import Dict, Opaque, Optimizer, Spot, Value, constant, seq
from precaudit.static.overlays import Call, data_files
from precaudit.static.overlays.torch import modules

if TYPE_CHECKING:
    from precaudit.static.overlays.run import Run


def initialize(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`deepspeed.initialize(...)`, with its config as a dict of this file."""
    config = kwargs.get("config", kwargs.get("config_params"))
    if isinstance(config, Dict):
        perhaps = {key for key in config.store if run.interpreter.heap.perhaps(config.store, key)}
        for remark in configs.deepspeed(plain(config), perhaps):
            spot, because = _written(config, remark.keys) or run.spot(node), ("it is used here", run.spot(node))
            run.facts.add(remark.kind, spot, remark.dtype, remark.role, because, remark.detail, **remark.attrs)
    run.met("deepspeed")
    run.training.outside_scaling = True
    for value in (*args, *kwargs.values()):
        if isinstance(value, Optimizer):
            value.store["elsewhere"] = True
        modules.escape(run, value)
    return seq([Opaque(), Opaque(), Opaque(), Opaque()], "tuple")


def _written(config: Value, keys: tuple[str, ...]) -> Spot | None:
    """The place of an item in nested literals, as near as they can be followed."""
    spot = None
    for key in keys:
        if not isinstance(config, Dict) or config.spot is None:
            break
        mine = [at for name, at in _keys(config.spot.node) if name == key]
        if key not in config.store:
            break
        held = config.store[key]
        if mine:
            spot, config = replace(config.spot, node=mine[-1]), held
        elif isinstance(held, Dict) and held.spot is not None:  # put there after the literal
            spot, config = held.spot, held
        else:
            break
    return spot


def _keys(node: Any) -> Iterator[tuple[Any, Any]]:
    """(key, its place) in `{"key": ...}` or `dict(key=...)`."""
    for part in node.args if isinstance(node, cst.Call) else node.elements:
        if isinstance(part, cst.Arg) and part.keyword is not None:
            yield part.keyword.value, part.keyword
        elif isinstance(part, cst.DictElement) and isinstance(part.key, cst.SimpleString):
            yield part.key.evaluated_value, part.key


def plain(value: Value) -> Any:
    """The Python object behind nested constants; None stands for what is not known."""
    if isinstance(value, Dict):
        return {key: plain(item) for key, item in value.store.items() if isinstance(key, str)}
    return constant(value)


def read_config(run: Run, given: Value | None, node: Any) -> dict[str, Any]:
    """A DeepSpeed config given as a dict or as the path of a JSON file near the script; empty where it is not known."""
    name = data_files.text_of(given) if given is not None else None
    if name is not None and name.endswith(".json"):
        given = data_files.parsed(run, name, "json", node)
    found = plain(given) if isinstance(given, Dict) else None
    return found if isinstance(found, dict) else {}


CALLS: Mapping[str, Call] = {"deepspeed.initialize": initialize}
