"""Optimizers and averages written in the code under check: their state, and parameters written in place."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from precaudit.static.language import calls, classes
from precaudit.static.language.heap import Store
from precaudit.static.language.values import (
    ANY,
    Class,
    Dict,
    Instance,
    Value,
    seq,
    unknown,
)
from precaudit.static.overlays.torch import optimizers
from precaudit.static.reach.words import code_of

if TYPE_CHECKING:
    from precaudit.static.overlays.run import Run

COMPENSATED = re.compile(r"kahan|compensat|stochastic|_sr_|seeded_round", re.IGNORECASE)
CARRIES = re.compile(
    r"\b(\w+) *= *(\w+)(?:\.data|\.detach\(\))?\.clone\(\).*\b\1(?:\.sub_?\( *(?:other *= *)?| *- *)\2\b", re.DOTALL
)
"""A copy made before an update, less what is there after it: what rounding took."""
LEFT = re.compile(r"\b(\w+)(?:\.data)?\.copy_\( *(?:src *= *)?(\w+) *\).*\b\2 *- *\1\b", re.DOTALL)
"""The exact value that a parameter is copied from, less the parameter: what rounding took."""
MOVED = re.compile(
    r"\b(\w+) *= *(\w+)\.(?:float\(\)|to\( *torch\.float32 *\)).*"
    r"\b\2\.copy_\( *(?:src *= *)?(?:\1 *\+ *)?(\w+)(?: *\+ *\1)? *\).*"
    r"(?:\b\3 *- *\( *\2\.(?:float\(\)|to\([^()]*\)) *- *\1 *\)"
    r"|\( *\1 *- *\2\.(?:float\(\)|to\([^()]*\)) *\) *\+ *\3\b)",
    re.DOTALL,
)
"""What was to be added, less how far the parameter moved between two wide copies: what rounding took."""
SCALED = re.compile(r"/ *\w+\)\.(?:half\(|to\( *torch\.(?:float16|half) *\))")
"""State over a scale of its own: what float16 lacks is range."""


def is_optimizer_class(cls: Value) -> bool:
    bases = classes.library_bases(cls)
    return any(b.startswith("torch.optim") and b.rsplit(".", 1)[-1][:1].isupper() for b in bases)


def init_optimizer(run: Run, instance: Instance, args: list[Value], kwargs: dict[str, Value]) -> None:
    """`super().__init__(params, defaults)` of a class derived from torch.optim.Optimizer."""
    given = args[0] if args else kwargs.get("params", unknown())
    defaults = args[1] if len(args) > 1 else kwargs.get("defaults", unknown())
    group: Store = dict(defaults.store) if isinstance(defaults, Dict) else {ANY: unknown()}
    group["params"] = seq(optimizers.collect(run, given), open=True)
    put = run.interpreter.heap.put
    put(instance.store, "param_groups", seq([Dict(group)], open=True))
    put(instance.store, "state", Dict({}, "optimizer_state"))
    put(instance.store, "defaults", defaults)
    run.training.custom.append(instance)


def current_optimizer(run: Run) -> Instance | None:
    """The hand-written optimizer whose method is being run."""
    for frame in reversed(run.interpreter.frames):
        if isinstance(frame.receiver, Instance) and is_optimizer_class(frame.receiver.cls):
            return frame.receiver
    return None


def compensated(instance: Instance) -> bool:
    """Whether the class compensates on purpose: Kahan summation, stochastic rounding, state with a scale."""
    cls = instance.cls
    if not isinstance(cls, Class):
        return False
    text = code_of(cls.scope.source.code(cls.node))
    return any(shape.search(text) for shape in (COMPENSATED, LEFT, MOVED, SCALED))


def compensating(run: Run) -> bool:
    """Whether the class or function that runs compensates, by words or deeds; one that trains is too long to tell."""
    for frame in reversed(run.interpreter.frames):
        if frame.function is not None:
            owner = frame.owner if isinstance(frame.owner, Class) else None
            source = owner.scope.source if owner is not None else run.interpreter.scope.source
            text = code_of(source.code(owner.node if owner is not None else frame.function))
            found = any(shape.search(text) for shape in (COMPENSATED, CARRIES, LEFT, MOVED))
            return found and "backward(" not in text
    return False


def step(run: Run, instance: Instance, node: Any) -> None:
    """Runs the step method of a hand-written optimizer that a GradScaler steps."""
    method = classes.find_method(instance.cls, "step")
    if method is not None:
        calls.call(run.interpreter, classes.bind(method[0], instance, method[1]), [], {}, node)
