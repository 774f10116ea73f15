"""What has happened on each path that leads to where the interpreter stands."""

from __future__ import annotations

from typing import Any

from precaudit.static.language import conditions
from precaudit.static.overlays.run import Run

State = frozenset[Any]


def pending(run: Run, state: State) -> set[int]:
    """The scalers whose scaled gradients wait for a step on this path, without those that are switched off there."""
    keys = {event[1] for event in state if event[0] == "pending"}
    asked = {key: run.training.enabled_if[key] for key in keys if key in run.training.enabled_if}
    assumed = conditions.assumptions(state) if asked else {}
    return keys - {key for key, condition in asked.items() if conditions.known(condition, assumed) is False}


def has(state: State, kind: str) -> bool:
    return any(event[0] == kind for event in state)


def update(run: Run, change: Any) -> None:
    run.interpreter.set_paths(change(state) for state in run.interpreter.paths)
