"""Sees every optimizer step, and takes stock of parameters, gradients and optimizer state around it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from .. import torch_private as private
from ..events import StepBegan, StepEnded
from ..trackers.window import BACKWARD, FORWARD, OPTIMIZER

if TYPE_CHECKING:
    from ..session import Session


class OptimizerProbe:
    """Global step hooks; a step inside a step (`super().step`, wrappers) counts once, for the outermost."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.depth = 0
        self.stepping: Any = None
        """The outermost optimizer that is inside its step."""
        self._outer_phase = 0
        self._hooks: list[Any] = []
        self._called = False
        """torch is walking through its table of hooks, and is at ours."""
        self._prints: weakref.WeakKeyDictionary[Any, list[float]] = weakref.WeakKeyDictionary()

    def install(self) -> list[Callable[[], None]]:
        self._hooks = [
            register_optimizer_step_pre_hook(self._before),
            register_optimizer_step_post_hook(self._after),
        ]
        return []

    def remove(self) -> Callable[[], None]:
        """Takes the hooks out; where torch walks through them just now, at the next backward, or by what is returned.

        The walk would break off, and the user's own hooks go unheard. Call it when nothing else is patched any more.
        """
        if self._called:
            return private.before_next_backward(self._take_out)
        self._take_out()
        return lambda: None

    def _take_out(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _before(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if torch.compiler.is_compiling():  # no op of ours in the user's graph, and no break of it either
            return
        self.give_up_failed(own=1)
        self.depth += 1
        if self.depth == 1:
            self.stepping = optimizer
            self._tell(StepBegan(optimizer))
            self._outer_phase = self.session.window.phase
            self.session.window.phase = OPTIMIZER
        elif optimizer is not self.stepping:  # it steps inside another one, which is waited for in its stead
            self.session.construction.optimizers.discard(optimizer)

    def _after(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if torch.compiler.is_compiling():
            return
        self.depth = max(0, self.depth - 1)
        if self.depth == 0:
            self.stepping = None
            self._leave()
            self._tell(StepEnded(optimizer))

    def _tell(self, event: StepBegan | StepEnded) -> None:
        self._called = True
        try:
            self.session.bus.tell(event)
        finally:
            self._called = False

    def _leave(self) -> None:
        self.session.window.phase = BACKWARD if self._outer_phase == BACKWARD else FORWARD

    def give_up_failed(self, own: int = 0) -> None:
        """A step that raised, as out of its closure, calls no hook: it is over when it is on the stack no more.

        `own` is 1 where the step that now begins is on the stack already.
        """
        if self.depth and private.steps_on_stack() <= own:
            self.depth, self.stepping = 0, None
            self._leave()

    def steps_unseen(self) -> list[Any]:
        """Optimizers whose parameters changed since the last call although no step of theirs was seen.

        Compiled steps call no hook, and some optimizers (LOMO) have no step. Asked at each backward until a step has
        been seen; where one may be compiled, or was taken so before, later too. Reads a few elements.
        """
        session = self.session
        found: list[Any] = []
        if self.depth:  # a closure's backward, inside a step that was seen
            return found
        for optimizer in list(session.construction.optimizers):
            if optimizer in session.seen_stepping or (session.window.attempts and not self._may_go_unseen(optimizer)):
                continue
            now = _print(optimizer)
            before = self._prints.get(optimizer)
            self._prints[optimizer] = now
            if before is not None and before != now:
                found.append(optimizer)
        return found

    def _may_go_unseen(self, optimizer: Any) -> bool:
        return self.session.compiled.watching or optimizer in self.session.silent


FEW = 4


def _print(optimizer: Any) -> list[float]:
    """A few elements of a few parameters: enough to tell whether a step was taken."""
    trained = [private.local(p) for p in parameters(optimizer) if p.requires_grad]
    plain = [p for p in trained if type(p) in private.PLAIN and p.numel() and p.device.type != "meta"]
    chosen = [p for p in plain[:: max(1, len(plain) // FEW)][:FEW] if p.untyped_storage().nbytes()]
    parts = [p.detach().reshape(-1)[:FEW].double() for p in chosen if not p.is_complex()]
    return torch.cat(parts).tolist() if parts and len({part.device for part in parts}) == 1 else []


def parameters(optimizer: Any) -> list[Tensor]:
    """All tensors in the optimizer's param_groups."""
    return [p for group in optimizer.param_groups for p in group["params"] if isinstance(p, Tensor)]


class Held(NamedTuple):
    """One tensor that an optimizer keeps."""

    name: str
    """The path of its keys and attributes, without numbers: "projector.ortho_matrix"."""
    tensor: Tensor
    parameter: Tensor | None
    """Whose state it is, where the optimizer files it under a parameter."""
    box: int
    """What is kept in one dict or inside one wrapper belongs together: codes and their scales."""
    part: str = ""
    """Which part of a wrapper it is; a tensor that holds its own numbers has none."""


WRAPPED = ("optim", "optimizer", "base_optimizer", "inner_optimizer")
"""Attributes of wrappers that hold another optimizer: ZeroRedundancyOptimizer, Lookahead, SAM."""


def inner_optimizers(optimizer: Any) -> list[Any]:
    """The optimizers that this one wraps."""
    found = (vars(optimizer).get(name) for name in WRAPPED)
    return [inner for inner in found if isinstance(getattr(inner, "param_groups", None), list)]


def state_tensors(optimizer: Any) -> Iterator[Held]:
    """Every tensor an optimizer keeps from step to step: in its state, in its attributes, in the optimizers it wraps.

    Parameters, their gradients and what shares their memory are no state. An attribute counts where it is filed under
    a parameter or its name, or has the shape of one; scratch buffers and schedules have neither.
    """
    seen: set[int] = set()
    for one in (optimizer, *inner_optimizers(optimizer)):
        for held in _kept_by(one):
            if id(held.tensor) not in seen:
                seen.add(id(held.tensor))
                yield held


def _kept_by(optimizer: Any) -> Iterator[Held]:
    mine = parameters(optimizer)
    own = {id(t) for p in mine for t in (p, p.grad)}
    for owner, held in list(optimizer.state.items()):
        parameter = owner if isinstance(owner, Tensor) else None
        kept = _nested(owner if isinstance(owner, str) else "", held, parameter, 0, 0)
        yield from (h for h in kept if id(h.tensor) not in own)
    elsewhere = [*_in_groups(optimizer), *_in_attributes(optimizer, {tuple(p.shape) for p in mine})]
    if elsewhere:
        memory = {private.storage_key(private.local(t)) for p in mine for t in (p, p.grad) if t is not None} - {0}
        yield from (h for h in elsewhere if private.storage_key(h.tensor) not in memory)


def _in_groups(optimizer: Any) -> Iterator[Held]:
    for group in optimizer.param_groups:
        for key, value in group.items():
            if key != "params" and isinstance(value, (Tensor, list, tuple, dict)):
                yield from (h for h in _nested(key, value, None, 0, id(group)) if h.tensor.numel() > 1)


def _in_attributes(optimizer: Any, shapes: set[tuple[int, ...]]) -> Iterator[Held]:
    for key, value in list(vars(optimizer).items()):
        if key in ("state", "param_groups", "defaults", *WRAPPED) or key.startswith("_optimizer_"):
            continue
        if not isinstance(value, (Tensor, dict, list, tuple)):
            continue
        filed = list(value.items()) if isinstance(value, dict) else []
        named = bool(filed) and all(isinstance(name, (str, Tensor)) for name, _ in filed)
        for name, item in filed if named else [(None, value)]:
            parameter = name if isinstance(name, Tensor) else None
            for held in _nested(key, item, parameter, 1, id(value)):
                if named or tuple(held.tensor.shape) in shapes:
                    yield held


def _nested(path: str, value: Any, parameter: Tensor | None, depth: int, box: int) -> Iterator[Held]:
    if isinstance(value, Tensor):
        parts = private.parts(value)
        for part, tensor in parts:
            yield Held(path, tensor, parameter, id(value) if part else box, part)
    elif depth > 4:
        return
    elif isinstance(value, dict):
        for key, item in list(value.items()):
            name = key if isinstance(key, str) else ""
            name = f"{path}.{name}".strip(".") if path else name
            if type(item) is Tensor:  # nearly always, and there are thousands
                yield Held(name, item, parameter, id(value))
            else:
                yield from _nested(name, item, parameter, depth + 1, id(value))
    elif isinstance(value, (list, tuple)) or type(value).__name__ == "deque":
        for item in list(value):
            yield from _nested(path, item, parameter, depth + 1, id(value))
    elif hasattr(value, "__dict__") and type(value).__module__ != "builtins" and not isinstance(value, torch.nn.Module):
        for key, item in list(vars(value).items()):
            if isinstance(item, (Tensor, dict, list, tuple)):
                yield from _nested(f"{path}.{key}".strip("."), item, parameter, depth + 1, id(value))


def group_tensors(optimizer: Any) -> Iterator[tuple[str, Tensor]]:
    """Hyperparameters that are tensors: lr, betas, weight_decay and their kin."""
    for group in optimizer.param_groups:
        for key, value in group.items():
            if key == "params":
                continue
            for item in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(item, Tensor) and item.dtype.is_floating_point:
                    yield key, item


def nbytes(tensor: Tensor) -> int:
    """Bytes this rank holds for the tensor; of a sparse one, its values; of a wrapper, all its parts."""
    total = 0
    for _, own in private.parts(tensor):
        if own.layout is not torch.strided:
            own = own._values() if own.layout is torch.sparse_coo else own.values()
        total += int(own.nbytes)
    return total
