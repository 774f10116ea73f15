"""Follows what values descend from: marks on storages that survive some ops and end at others."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...model.vocabulary import FLOATING, Kind, Role, Site
from .. import torch_private as private
from ..dtypes import DTYPE_NAMES, LOW
from ..events import BackwardEnded, Bus, StepOver
from ..operands import differentiable, in_graph, tensors_of
from ..operations import (
    BACKWARD,
    FORWARD,
    GRADIENTS,
    LOW_RESULTS,
    OTHER_RESULTS,
    Heard,
    Op,
    Operations,
)
from ..optable import CUDA_FLOAT32, NORMS, POINTWISE, REDUCING, SHAPING
from ..process.ledger import Ledger, Observation
from ..sites import autocasts_cpu_alone, chooses_device, enclosing_module, in_user_hook, user_frame, user_site
from .autocast import Autocast
from .entering import Entering
from .micro_batches import MicroBatches
from .modules import Modules
from .tensors import Place, Record, Tensors
from .window import Window

MANY = 8
"""Values that one is remembered to come from."""
Marks = dict[str, Any]
"""What a value descends from; a mark carries the Observation it may confirm, or True."""

CHOOSING = frozenset({"maximum", "minimum", "where", "clamp", "clamp_min", "clamp_max"})
"""Their results are among their inputs: choosing rounds nothing, however often it is done."""
DECAYING = frozenset({"mul", "lerp"})

SURVIVES: dict[str, frozenset[str]] = {
    "pointwise": frozenset(
        "position square_mean softmax grad grad_norm param from_gradient decays from eps uniform delta "
        "unpromoted cuda_float32".split()
    ),
    "shaping": frozenset(
        "position square square_mean softmax grad grad_norm param from_gradient decays from eps uniform delta "
        "unpromoted cast_of cuda_float32".split()
    ),
    "reducing": frozenset({"softmax", "grad", "grad_norm", "position", "cuda_float32"}),
}
"""Which marks live on through which class of op. A matmul ends all of them."""


def kind_of(name: str) -> str | None:
    """The class of an op by its aten name."""
    if name in POINTWISE:
        return "pointwise"
    if name in SHAPING:
        return "shaping"
    if name in REDUCING or name in NORMS:
        return "reducing"
    return None


@dataclass(frozen=True, slots=True)
class Lineage:
    """How often a value was replaced by one computed from it, at the line where that begins."""

    generation: int
    start: tuple[str, int]
    clock: int
    dtype: Any
    from_parameter: bool = False
    from_gradient: bool = False
    decays: bool = False
    """It is multiplied on its way: a moving average or a momentum, not a sum."""
    in_wide: bool = False
    """It lies in float32 memory now, and has been rounded on its way there."""
    moved: bool = False
    """Something has been computed with it since it was last rounded: rounded again as it is, it loses nothing."""


class Suspicion(NamedTuple):
    """What an observation of one op at one line is told under."""

    what: str
    """Tells apart what one line may be told of twice: a "softmax" and a "log_softmax"."""
    kind: Kind
    role: Role | None
    dtype: Any
    line: tuple[str, int]


class CastOf(NamedTuple):
    """What a cast was made of."""

    source: Record
    dtype: Any
    version: int = 0
    """That of the parameter, where it was one."""


class Flow:
    """The marks of one session, and the observations they may confirm."""

    def __init__(
        self,
        bus: Bus,
        operations: Operations,
        ledger: Ledger,
        window: Window,
        tensors: Tensors,
        micro_batches: MicroBatches,
        modules: Modules,
        autocast: Autocast,
        entering: Entering,
    ) -> None:
        self._autocast = autocast
        self._entering = entering
        self._micro_batches = micro_batches
        self._modules = modules
        self.ledger = ledger
        self.window = window
        self.tensors = tensors
        self.marked = False
        """Some value that is still there has a mark."""
        self.factored = False
        """Some such mark names low factors."""
        self.lineage_sites: dict[tuple[str, int], Site | None] = {}
        self.sums: dict[tuple[str, int], Lineage] = {}
        """Low-precision sums of gradients over several backward passes, by the line that replaces them."""
        self.scalar_sites: dict[int, Site] = {}
        """Autograd sequence number -> the line of a low-precision one-element result."""
        self.cuda_scalars: set[int] = set()
        """Those of them that CUDA's autocast would have made in float32."""
        self.ops = 0
        self.unattributed = 0
        self.device = ""
        """Where the last low-precision result lies."""
        self.cuda_float32 = False
        """The op in progress would have a float32 result under CUDA's autocast."""
        operations.on(self._hear)
        bus.on(BackwardEnded, self._backward_ended)
        bus.on(StepOver, lambda event: self.step_boundary())

    def _backward_ended(self, event: BackwardEnded) -> None:
        """What autograd.grad returned are gradients."""
        for gradient in event.results if not event.accumulates and isinstance(event.results, tuple) else ():
            if isinstance(gradient, Tensor):
                self.mark(private.unwrapped(gradient), grad=True)

    def _hear(self, op: Op) -> Iterable[Heard]:
        kind = kind_of(op.name)
        if kind is not None:
            for phase in (FORWARD, GRADIENTS):
                yield Heard(phase, partial(self.other_result, kind), OTHER_RESULTS)
        if not op.aten:
            return
        yield Heard(FORWARD, self.count)
        if op.name in CUDA_FLOAT32:
            yield Heard(FORWARD, self.on_cuda_float32)
        if kind is not None or not op.writes:
            yield Heard(FORWARD, self.low_result, LOW_RESULTS)
        if op.name == "add":
            yield Heard(BACKWARD, self.in_hook, LOW_RESULTS)

    # -- marks

    def of(self, tensor: Any) -> Marks:
        """The marks of a tensor's storage; empty where it has none."""
        return (self.tensors.of(tensor).marks or {}) if isinstance(tensor, Tensor) else {}

    def mark(self, out: Any, **marks: Any) -> None:
        """Adds marks to a tensor, or to each of a list."""
        for tensor in out if isinstance(out, (list, tuple)) else (out,):
            if isinstance(tensor, Tensor):
                known = self.tensors.learn(tensor)
                known.marks = {**known.marks, **marks} if known.marks else marks
                self.marked = True

    def inherit(self, kind: str, args: Iterable[Any], out: Any) -> None:
        """Puts the marks of the inputs that survive this class of op on the output."""
        if not self.marked:
            return
        found: Marks = {}
        for tensor in tensors_of(args):
            marks = self.tensors.of(tensor).marks
            if not marks:
                continue
            origins = found.get("from", frozenset()) | marks.get("from", frozenset())
            found.update(marks)
            if origins:
                found["from"] = origins
        kept = {mark: value for mark, value in found.items() if mark in SURVIVES[kind]}
        if kept:
            self.mark(out, **kept)

    # -- the base reaction of the forward pass

    def count(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        """Every op is counted; one without gradient or role is counted as unattributed."""
        self.ops += 1
        self.cuda_float32 = False
        if not torch.is_grad_enabled():
            self.unattributed += 1

    def low_result(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        """A low-precision result, or one that is no floating value: marks go through, scalars are located."""
        kind = kind_of(name)
        if kind is not None:
            self.inherit(kind, args, out)
            if self._entering.any:
                self._entering.through(name, args, out)
        if isinstance(out, Tensor) and out.dtype in LOW:
            self.device = out.device.type
            if self.marked:
                self._follow_cuda(name, out)
            if out.numel() == 1 and torch.is_grad_enabled() and differentiable(args):
                # The node of this op was made just before it ran, so it has the number before the next one.
                number = private.next_sequence_number() - 1
                self.scalar_sites[number] = user_site() or Site("", 0)
                if self.cuda_float32:
                    self.cuda_scalars.add(number)
            if kind == "pointwise" or name == "_to_copy":
                self.follow(name, args, out)

    def on_cuda_float32(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        """An op that CPU autocast leaves low and CUDA's does not: the result, and what promotes with it, is marked."""
        region = self._autocast.active()
        if region is None or region.device != "cpu":
            return
        results = out if isinstance(out, (list, tuple)) else (out,)
        low = [result for result in results if isinstance(result, Tensor) and result.dtype in LOW]
        if low:
            self.mark(low, cuda_float32=True)
            self.cuda_float32 = True

    def _follow_cuda(self, name: str, out: Tensor) -> None:
        """Anything elementwise on a float32 value is float32; only the script's own cast lowers it again."""
        marks = self.tensors.of(out).marks
        if not marks or "cuda_float32" not in marks:
            return
        if name == "_to_copy":
            kept = {mark: value for mark, value in marks.items() if mark != "cuda_float32"}
            self.tensors.learn(out).marks = kept
        else:
            self.cuda_float32 = True

    def only_on_cpu(self, site: Site | None) -> bool:
        """Whether the op in progress is low only because this run of a script for any device is on the CPU."""
        return self.cuda_float32 and self.runs_anywhere(site)

    def runs_anywhere(self, site: Site | None) -> bool:
        """Whether the script picks its device at run time, at this site or where it entered autocast."""
        entered = [region for (device, _), region in self._autocast.declared.items() if device == "cpu"]
        if any(autocasts_cpu_alone(at) for at in entered):
            return False
        return any(chooses_device(at) for at in (site, *entered))

    def in_hook(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        """A sum of a parameter's shape that a hook of the user's makes inside backward is one of gradients."""
        if self._micro_batches.has_shape(out) and in_user_hook():
            self.mark(out, grad=True)
            self.follow(name, args, out)

    def follow(self, name: str, args: Any, out: Tensor) -> None:
        """Keeps which long-lived low-precision values a value without gradient was computed from, elementwise."""
        inputs = [arg for arg in args if isinstance(arg, Tensor)]
        if torch.is_grad_enabled() and any(t.requires_grad for t in inputs):
            return
        is_parameter = self.tensors.is_parameter
        if any(t.requires_grad and not is_parameter(t) for t in inputs):
            return
        if name in CHOOSING:
            known = [line for line in (self.tensors.of(t).lineage for t in inputs) if line is not None]
            if known:
                self.tensors.learn(out).lineage = max(known, key=lambda line: line.generation)
            return
        marks = self.of(out)
        origins: frozenset[Record] = marks.get("from", frozenset())
        direct: frozenset[Record] = frozenset()
        here, now, from_parameter = self.line(), self.window.clock, False
        from_gradient = "grad" in marks
        decays = False
        # What a cast begins gives way to the sum that takes it in.
        line = Lineage(0 if name == "_to_copy" else 1, here, now, out.dtype)
        for tensor in inputs:
            if is_parameter(tensor):
                self.mark(out, param=True)
                from_parameter = True
                continue
            marks = self.of(tensor)
            from_parameter |= "param" in marks
            from_gradient |= "grad" in marks or "from_gradient" in marks
            if tensor.numel() != out.numel():
                continue
            if tensor.dtype in LOW:
                sources = frozenset({self.tensors.learn(tensor)})
                direct |= sources
            else:  # rounded back: what counts is which low values it was computed from
                sources = self._of_wide(name, tensor)
                decays |= "decays" in marks
            line, multiplied = self._continued(line, sources, here, out.dtype)
            decays |= multiplied and name in DECAYING
        if len(origins | direct) > MANY:
            origins = frozenset()  # a long formula: only its last operands are still told apart
        origins |= direct
        if origins:
            self.mark(out, **{"from": origins})
        if origins or name == "_to_copy":
            said: dict[str, Any] = {
                "from_parameter": from_parameter or line.from_parameter,
                "from_gradient": from_gradient or line.from_gradient,
                "decays": decays or line.decays,
            }
            self._rounded(out, replace(line, in_wide=False, moved=False, **said))

    def _rounded(self, out: Tensor, line: Lineage) -> None:
        """This is where a lineage has come to, in low precision."""
        self.tensors.learn(out).lineage = line
        self.window.every_micro_batch_counts |= line.generation >= 2
        if line.generation >= 2 and line.start not in self.lineage_sites:
            self.lineage_sites[line.start] = user_site()
        if line.generation >= 2 and line.from_gradient:
            self.sums[line.start] = line

    def _of_wide(self, name: str, tensor: Tensor) -> frozenset[Record]:
        """Where a float32 value's lineage is: none where a cast only rounds again what was rounded before."""
        known = self.tensors.of(tensor)
        if name == "_to_copy" and known.lineage is not None and known.lineage.in_wide and not known.lineage.moved:
            return frozenset()
        return frozenset({known, *(known.marks or {}).get("from", ())})

    def _continued(self, line: Lineage, sources: Iterable[Record], here: Any, dtype: Any) -> tuple[Lineage, bool]:
        """A value's lineage, with what it is computed from; and whether something older is among that."""
        now, of_before = self.window.clock, False
        for older in [known.lineage for known in sources if known.lineage is not None and not known.expired]:
            of_before |= older.clock < now
            if older.clock == now and older.generation >= line.generation:
                line = older
            elif older.clock < now and older.start == here:
                generation = max(line.generation, (older.generation or 1) + 1)
                line = replace(older, generation=generation, clock=now, dtype=dtype)
        return line, of_before

    def other_result(self, kind: str, name: str, args: Any, kwargs: Any, out: Any) -> None:
        """Marks go through integers, which positions are first, and through float32 values without gradient."""
        if not isinstance(out, Tensor):
            return
        if not out.dtype.is_floating_point:
            self.inherit(kind, args, out)
            return
        if self._entering.any and self.window.phase == FORWARD:
            self._entering.through(name, args, out)
        if kind != "reducing" and self.window.phase in (FORWARD, GRADIENTS):
            self.upcast(name, args, out)

    def upcast(self, name: str, args: Any, out: Tensor) -> None:
        """A float32 value without gradient: which low-precision ones it was computed from, elementwise.

        An average that is upcast, moved and rounded back at each step accumulates in the lower dtype all the same.
        What is only subtracted is no part of a sum: the rounded value in an error that is carried to the next step.
        """
        if in_graph(args):  # nearly always
            return
        inputs = tensors_of(args)
        if in_graph(inputs):
            return
        origins: frozenset[Record] = frozenset()
        from_parameter = from_gradient = decays = False
        factors: tuple[Place, ...] = ()
        lines: list[Lineage] = []
        for index, tensor in enumerate(inputs):
            marks = self.of(tensor)
            factors += marks.get("factors", ())
            if tensor.dtype in LOW:
                made = self.tensors.of(tensor).made_at
                self.mark(out, rounded=(tensor.dtype, made))
                if tensor.ndim == 0 and out.ndim:
                    factors += (Place(self.tensors.learn(tensor), tensor),)
            elif "rounded" in marks:
                self.mark(out, rounded=marks["rounded"])
            from_parameter |= "param" in marks or self.tensors.is_parameter(tensor)
            from_gradient |= "grad" in marks or "from_gradient" in marks or self.tensors.is_gradient(tensor)
            if name == "sub" and index:
                continue
            line = self.tensors.of(tensor).lineage
            if line is not None and tensor.numel() == out.numel():
                lines.append(line)
            decays |= "decays" in marks or (line is not None and line.decays)
            origins |= marks.get("from", frozenset())
            if tensor.dtype in LOW and tensor.numel() == out.numel():
                origins |= {self.tensors.learn(tensor)}
        if factors:
            self.mark(out, factors=factors[:MANY])
            self.factored = True
        if origins and len(origins) <= MANY:
            self.mark(out, **{"from": origins, **({"decays": True} if decays or name in DECAYING else {})})
        if lines:
            self.widened(out, max(lines, key=lambda line: line.generation), name in POINTWISE)
        if from_parameter:
            self.mark(out, param=True)
        if from_gradient:
            self.mark(out, from_gradient=True)

    def widened(self, held: Tensor, line: Lineage, moved: bool = False) -> None:
        """This float32 memory holds what has been rounded: an average may be, at each of its updates."""
        if not line.in_wide or (moved and not line.moved):
            line = replace(line, in_wide=True, moved=moved or line.moved)
        self.tensors.learn(held).lineage = line

    # -- observations

    @staticmethod
    def line() -> tuple[str, int]:
        """The user's file and line, cheaper than a Site."""
        frame = user_frame()
        return (frame.f_code.co_filename, frame.f_lineno or 0) if frame else ("", 0)

    def suspect(self, what: str, role: Role, dtype: Any, detail: str = "", **attrs: Any) -> Observation:
        """The HOLDS observation of this role at this line, counted once more; made unconfirmed if it is new."""
        return self.suspect_kind(what, Kind.HOLDS, role, dtype, detail, **attrs)

    def suspect_kind(
        self, what: str, kind: Kind, role: Role | None, dtype: Any, detail: str = "", **attrs: Any
    ) -> Observation:
        """The observation of this kind at this line, counted once more; made unconfirmed if it is new."""
        key = Suspicion(what, kind, role, dtype, self.line())
        seen = self.ledger.get(key)
        if seen is not None and not self.cuda_float32:
            seen.attrs.pop("only_on_cpu", None)
        if seen is None:
            module = self._modules.module_name(enclosing_module(torch.nn.Module))
            made = Observation(
                kind, DTYPE_NAMES[dtype], role, user_site(), module=module, detail=detail, attrs=attrs, confirmed=False
            )
            region = self._autocast.words()
            if region:
                made.attrs["autocast"] = region
            if self.device:
                made.attrs["device"] = self.device
            if self.only_on_cpu(made.site):
                made.attrs["only_on_cpu"] = True
            seen = self.ledger.put(key, made)
        seen.count += 1
        return seen

    @staticmethod
    def confirm(seen: Observation, **attrs: Any) -> None:
        seen.confirmed = True
        seen.attrs.update(attrs)

    def share(self, seen: Observation, name: str) -> Callable[[list[float]], None]:
        """A reader of (bad, total[, largest]) that keeps the largest share, and the headroom in bits."""

        def use(values: list[float]) -> None:
            bad, total = values[0], values[1]
            if bad:  # that the first results were finite says nothing of the others
                seen.evidence[name] = max(seen.evidence.get(name, 0.0), bad / total)
            if len(values) > 2 and values[2] > 0 and seen.dtype in FLOATING:
                bits = math.log2(FLOATING[seen.dtype].max / values[2])
                seen.evidence["headroom"] = min(seen.evidence.get("headroom", bits), bits)

        return use

    def living(self) -> list[Lineage]:
        """The lineages of values that are still there."""
        return [known.lineage for known in self.tensors.living() if known.lineage is not None]

    def step_boundary(self) -> None:
        marks = [known.marks for known in self.tensors.living() if known.marks] if self.marked else []
        self.marked, self.factored = bool(marks), any("factors" in each for each in marks)
