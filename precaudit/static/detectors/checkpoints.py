"""PA601 and PA602: an optimizer saved without its loss scale; its state, or the weights beside it, saved low."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from precaudit.model.vocabulary import LOW, Kind, Role
from precaudit.static.language.values import ANY, Dict, Instance, Opaque, Seq, Spot, Tensor, Value
from precaudit.static.overlays import records
from precaudit.static.overlays.bus import Bus
from precaudit.static.overlays.events import Op
from precaudit.static.overlays.torch import modules, operands

if TYPE_CHECKING:
    from precaudit.static.overlays.run import Run

SCALER = re.compile(r"scal|amp|extra|state|other|misc")
"""Keys under which something unknown may be a scaler's state."""


def listen(bus: Bus) -> None:
    Checkpoints(bus)


class Checkpoints:
    """What was saved with an optimizer's state; what nobody saved is known at the end."""

    def __init__(self, bus: Bus) -> None:
        self._saves: list[Spot] = []
        self._scaler_saved = False
        bus.on("save", self._saved, low_only=False)
        bus.on("scaler.state_dict", self._scaler_read, low_only=False)
        bus.on_end(self._end)

    def _scaler_read(self, op: Op) -> None:
        self._scaler_saved = True

    def _saved(self, op: Op) -> None:
        """`torch.save(value, path)`."""
        value = _by_name(op.run, op.operand(0))
        if not isinstance(value, Dict) or value.kind != "dict":
            return
        if any(isinstance(v, Opaque) and _may_hold_scaler(k) for k, v in value.store.items()):
            self._scaler_saved = True
        states = [t for v in value.store.values() for t in _optimizer_state(v)]
        if states:
            self._saves.append(op.spot)
            _low_weights_saved(op, list(value.store.values()))
            _low_state_saved(op, states)

    def _end(self, run: Run) -> None:
        stepped = run.training.stepped_scalers
        live = any(s.enabled is not False and id(s.store) in stepped for s in run.training.scalers)
        for spot in self._saves if live and not self._scaler_saved else ():
            run.facts.add(Kind.CHECKPOINT, spot, saves_optimizer=True, saves_scaler=False)


def _by_name(run: Run, value: Value) -> Value:
    """A tuple or an object that is no module as the dict of what it holds."""
    if isinstance(value, Seq) and not value.open:
        return Dict(dict(enumerate(value.items)))
    if isinstance(value, Instance) and not modules.is_module(run, value):
        return records.as_dict(value)
    return value


def _low_weights_saved(op: Op, entries: list[Value]) -> None:
    """Weights are written low beside the optimizer's state, and nowhere in float32: a resumed run begins from them."""
    if any(isinstance(entry, Seq) and _may_be_masters(entry) for entry in entries):
        return
    weights = [w for entry in entries for w in _weights(op.run, entry)]
    low = [w for w in weights if w.low]
    if low and len(low) == len(weights):
        because = ("the weights were cast here", low[0].spot)
        op.run.facts.add(Kind.CHECKPOINT, op.spot, low[0].dtype, Role.MASTER_WEIGHT, because, low=True)


def _may_be_masters(entry: Seq) -> bool:
    """A list that holds anything wide: `[master.detach() for master in masters]`."""
    return entry.open or any(isinstance(item, Tensor) and not item.low for item in entry.items)


def _low_state_saved(op: Op, states: list[Tensor]) -> None:
    """Slots that were float32 in the optimizer were cast low for the file; a step counter among them may not be."""
    low = [t for t in states if t.dtype is not None and t.dtype & LOW]
    if low and low[0].dtype is not None:
        because = ("the optimizer's state was cast here", low[0].spot)
        op.run.facts.add(Kind.CHECKPOINT, op.spot, low[0].dtype & LOW, Role.OPTIMIZER_STATE, because, low=True)


def _weights(run: Run, entry: Value) -> list[Tensor]:
    """The tensors of a state dict, of a dict made from one, or of a module that is saved whole."""
    held = list(entry.store.values()) if isinstance(entry, Dict) else []
    if modules.is_module(run, entry):
        held = [operands.as_tensor(run, param) for _, param in modules.parameters(run, entry)]
    return [v for v in held if isinstance(v, Tensor) and "weights" in v.marks]


def _optimizer_state(value: Value, depth: int = 0) -> list[Tensor]:
    """The slots in what `optimizer.state_dict()` gave, or in a dict made from it."""
    if isinstance(value, Tensor):
        return [value] if "optimizer_state" in value.marks else []
    if not isinstance(value, Dict) or depth > 3:
        return []
    return [t for v in value.store.values() for t in _optimizer_state(v, depth + 1)]


def _may_hold_scaler(key: object) -> bool:
    return not isinstance(key, str) or SCALER.search(key) is not None or key == ANY
