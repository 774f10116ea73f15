"""`precaudit.snapshot(model, optimizer)`: the dtypes held now, without a step; what a step alone tells is unknown."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from precaudit.api.audit import _each, _inner
from precaudit.api.reports import Audited
from precaudit.errors import UsageError
from precaudit.model.vocabulary import LOW, Fact, Kind, Role

if TYPE_CHECKING:
    from torch import Tensor

    from precaudit.model.wire import Report

NEEDS_A_STEP = "a snapshot sees no step; trace or audit one"


class Snapshot(Audited):
    """What was held at one moment: a report without steps.

    `ok` says that every role that was held is in a dtype it may have. `inconclusive` where something low may be meant,
    such as an optimizer that may carry along what rounding loses: only a step tells.
    """

    def __init__(self, report: Report) -> None:
        self._report = report


def snapshot(model: Any = None, optimizer: Any = None, *, scaler: Any = None) -> Snapshot:
    """Parameters, gradients, optimizer state, norm statistics and loss scale as they are held now; nothing runs.

        print(precaudit.snapshot(model, optimizer))

    Args:
        model: a torch.nn.Module, or a list or dict of several.
        optimizer: one or several; its parameters are the master weights.
        scaler: a GradScaler.

    Raises:
        UsageError: neither a module nor an optimizer is among them.
    """
    models = [one for one in _each(model) if hasattr(one, "named_parameters")]
    optimizers = [one for one in map(_inner, _each(optimizer)) if hasattr(one, "param_groups")]
    if not models and not optimizers:
        raise UsageError("snapshot: name a torch.nn.Module or an optimizer: precaudit.snapshot(model, optimizer)")
    held = _Held()
    for one in models:
        held.model(one)
    for one in optimizers:
        held.optimizer(one)
    held.scaler(scaler)
    return Snapshot(_judged(held))


@dataclass
class _Held:
    """Tensors by role and dtype, and why the dtype of some says nothing."""

    facts: dict[tuple[Role, str, str], Fact] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)
    frozen: int = 0
    """Elements that no gradient reaches."""
    parameters: int = 0

    def add(self, role: Role, tensor: Tensor, detail: str = "") -> None:
        """Counts a tensor; of a wrapper around codes and scales, none of which is the value, nothing."""
        from precaudit.runtime import torch_private as private

        parts = private.parts(tensor)
        dtype = str(tensor.dtype).removeprefix("torch.")
        if len(parts) != 1 or parts[0][0]:
            self.unknown[role.value] = f"{type(tensor).__name__} keeps it in parts; {NEEDS_A_STEP}"
            return
        if not tensor.is_floating_point():
            return
        known = self.facts.get((role, dtype, detail)) or Fact(Kind.HOLDS, dtype, role, detail=detail, count=0)
        size = parts[0][1].numel() * parts[0][1].element_size()
        self.facts[role, dtype, detail] = Fact(
            known.kind, dtype, role, detail=detail, count=known.count + 1, bytes=known.bytes + size
        )

    def model(self, model: Any) -> None:
        for parameter in model.parameters():
            self.add(Role.FORWARD_WEIGHT, parameter)
            self.parameters += 1
            self.frozen += 0 if parameter.requires_grad else parameter.numel()
            if parameter.grad is not None:
                self.add(Role.GRADIENT, parameter.grad)
        for statistics in _statistics(model):
            self.add(Role.NORM_RUNNING_STATISTICS, statistics)

    def optimizer(self, optimizer: Any) -> None:
        from precaudit.runtime.trackers.optimizers import state_tensors, trained

        mine = [p for p in trained(optimizer) if p.numel()]
        state = [one for one in state_tensors(optimizer) if one.tensor.ndim or one.part]
        why = self._unclear(optimizer, mine)
        name = type(optimizer).__name__
        for role, detail, tensors in (
            (Role.MASTER_WEIGHT, f"{len(mine)} parameters of {name}", mine),
            (Role.OPTIMIZER_STATE, f"{name} {', '.join(sorted({h.name for h in state}))}", [h.tensor for h in state]),
        ):
            low = sorted({d for t in tensors if (d := str(t.dtype).removeprefix("torch.")) in LOW})
            if low and why:
                self.unknown[role.value] = f"held in {', '.join(low)} by {name}, {why}"
            else:
                for tensor in tensors:
                    self.add(role, tensor, detail)
        if not state:
            self.unknown.setdefault(Role.OPTIMIZER_STATE.value, "nothing is kept before the first optimizer step")

    def _unclear(self, optimizer: Any, mine: list[Tensor]) -> str:
        """Why low dtypes of this optimizer may be right; empty where nothing speaks for it."""
        if not type(optimizer).__module__.startswith("torch.optim."):
            return f"which may carry along what rounding loses; {NEEDS_A_STEP}"
        if self.frozen > sum(p.numel() for p in mine):
            return f"and most of the model is frozen; {NEEDS_A_STEP}"
        return ""

    def scaler(self, scaler: Any) -> None:
        scale = getattr(scaler, "_scale", None)
        if scale is not None and hasattr(scale, "dtype"):
            self.add(Role.LOSS_SCALE, scale)


def _statistics(model: Any) -> Iterator[Tensor]:
    """Running statistics that the next forward pass moves: those of norms in training mode."""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._NormBase) and module.training:
            yield from (t for t in (module.running_mean, module.running_var) if t is not None)


def _judged(held: _Held) -> Report:
    import torch

    from precaudit import __version__, judge, rulebook
    from precaudit.launch.identity import begin
    from precaudit.launch.verdict import loud
    from precaudit.model.wire import Coverage, Report, Tool

    book, facts = rulebook.load(), list(held.facts.values())
    findings = judge.judge(facts, book, "trace")
    rows = judge.role_table(facts, findings, book)
    seen = {row.role for row in rows if row.dtype is not None}
    unknown = {role: why for role, why in held.unknown.items() if role not in seen}
    rest = {row.role: NEEDS_A_STEP for row in rows if row.role not in seen}
    status: Any = "findings" if loud(findings) else "inconclusive" if unknown or not seen else "clean"
    return Report(
        tool=Tool(version=__version__),
        command="snapshot",
        status=status,
        findings=findings,
        roles=rows,
        coverage=Coverage(parameters=held.parameters, not_observed=rest | unknown, setup={"torch": torch.__version__}),
        facts=[fact.as_json() for fact in facts],
        run=begin(cwd=os.getcwd()).ended(),
    )
