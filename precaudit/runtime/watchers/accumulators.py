"""Turns long-lived writes into roles: averaged weights, running sums, gradient buffers, hand-updated weights."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ...model.vocabulary import Kind, Role
from .. import torch_private as private
from ..process.ledger import Observation
from ..trackers.lineage import DTYPE_NAMES, LOW
from ..trackers.optimizers import nbytes
from ..trackers.replay import Totals
from .writes import Write

if TYPE_CHECKING:
    from ..session import Session


def find(session: Session, shapes: set[tuple[int, ...]]) -> list[Observation]:
    """Memory updated from itself over several backward passes, whatever its name.

    `shapes` are those of the parameters: a buffer of such a shape that parameters flow into is an average of them.
    """
    groups: dict[Any, Observation] = {}
    numbers: dict[Any, Totals] = {}
    for write in session.writes.living():
        if _is_accumulator(write):
            _add(session, groups, numbers, write, shapes)
    living = [line for line in session.flow.living() if line.generation >= 2]
    # A sum of gradients is dropped once its step was taken; anything else that died was no long-lived state.
    alive = {line.start for line in living}
    spent = [line for start, line in session.flow.sums.items() if start not in alive]
    for line in (*living, *spent):
        site = session.flow.lineage_sites.get(line.start)
        what, role = "ema" if line.from_parameter else "value", Role.ACCUMULATOR
        if line.from_gradient:
            what, role = ("moment", Role.OPTIMIZER_STATE) if line.decays else ("buffer", Role.GRADIENT_ACCUMULATION)
        seen = groups.setdefault(
            (role, what, line.dtype, line.start),
            Observation(
                Kind.HOLDS,
                DTYPE_NAMES[line.dtype],
                role,
                site,
                detail="replaced at each step by a value computed from itself",
                attrs={"what": what},
            ),
        )
        seen.count += 1
    for key, total in numbers.items():
        _evidence(session, groups[key], total)
    return list(groups.values())


def _is_accumulator(write: Write) -> bool:
    known = write.memory
    if len(write.clock) < 2 or not write.updates_itself or known.expired or write.dtype not in DTYPE_NAMES:
        return False
    return not (known.is_gradient or known.by_optimizer or known.compensates)


def _add(
    session: Session, groups: dict[Any, Observation], numbers: dict[Any, Totals], write: Write, shapes: set[Any]
) -> None:
    like_parameter = write.shape in shapes
    role, what, detail = Role.ACCUMULATOR, "value", "updated from itself at each step"
    if "grad" in write.sources and like_parameter and write.decays:
        role, what, detail = Role.OPTIMIZER_STATE, "moment", "buffers of a hand-written optimizer"
    elif "grad" in write.sources and like_parameter:
        role, what, detail = Role.GRADIENT_ACCUMULATION, "buffer", "own buffers that gradients are added to"
    elif "param" in write.sources and like_parameter:
        what, detail = "ema", "averaged weights"
    elif "loss" in write.sources:
        what, detail = "metric", "running sum of the loss"
    key = (role, what, write.dtype, write.site)
    seen = groups.setdefault(
        key,
        Observation(
            Kind.HOLDS, DTYPE_NAMES[write.dtype], role, write.site, write.cause, detail=detail, attrs={"what": what}
        ),
    )
    seen.count += 1
    seen.bytes += math.prod(write.shape) * getattr(write.dtype, "itemsize", 4)
    numbers.setdefault(key, Totals()).join(write.numbers)


def _evidence(session: Session, seen: Observation, total: Totals) -> None:
    if seen.role is Role.GRADIENT_ACCUMULATION:
        session.updates.of_sums(seen, total)
    elif total.should_move:
        seen.evidence["updates_lost"] = total.stuck / total.should_move


def hand_updated(session: Session) -> list[Observation]:
    """Parameters that a loop without an Optimizer updates itself."""
    held: dict[Any, list[Tensor]] = {}
    for leaf in session.writes.leaves():
        kinds = session.tensors.of(private.local(leaf)).writes or ()
        if "update" in kinds:
            held.setdefault((leaf.dtype, "kahan" in kinds), []).append(leaf)
    out = [] if held else _replaced(session)
    for (dtype, carried), leaves in held.items():
        seen = Observation(
            Kind.HOLDS,
            DTYPE_NAMES.get(dtype, str(dtype)),
            Role.MASTER_WEIGHT,
            session.writes.hand_written_at,
            session.construction.why_low(leaves[0]) if dtype in LOW else None,
            detail=f"{len(leaves)} parameters updated by the training loop itself",
            count=len(leaves),
            bytes=sum(nbytes(leaf) for leaf in leaves),
            attrs={"optimizer": "hand-written"},
        )
        if dtype in LOW:
            session.updates.of_parameters(seen, leaves)
        if carried:
            seen.attrs["allowed_because"] = "kahan"
        out.append(seen)
    return out


def _replaced(session: Session) -> list[Observation]:
    """Parameters that got other memory at each step (`p.data = …`), or whose place others took (`w = w - lr * g`)."""
    by_hand = session.steps.by_hand
    if not by_hand.replaces:
        return []
    return [
        Observation(
            Kind.HOLDS,
            DTYPE_NAMES.get(dtype, str(dtype)),
            Role.MASTER_WEIGHT,
            session.stock.last_backward,
            detail=f"{count} parameters replaced by the training loop itself",
            count=count,
            bytes=size,
            attrs={"optimizer": "hand-written"},
        )
        for dtype, (count, size) in by_hand.held.items()
    ]
