"""Sees the dtypes of every op of the traced steps: forward, backward, optimizer and collectives.

One dispatch mode, a plan per op chosen once, and short reactions that count. Marks on storages carry what a value
descends from (a square, a softmax, positions, gradients) to the op that makes it matter.

Known limitations: what runs inside a compiled region or a custom kernel is one op from here; marks do not follow
values through Python numbers, except a gradient norm read with `.item()`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...model.vocabulary import FLOATING, Kind, Role, Site, rounds_to
from .. import torch_private as private
from ..evidence import REPLAYABLE, Replay, nonfinite, sample, underflow
from ..identity import StorageMap
from ..ledger import Observation
from ..optable import (
    BATCH_NORMS,
    COPIES,
    MATMULS,
    NORMS,
    POINTWISE,
    REDUCING,
    REDUCTION_COLLECTIVES,
    RESETS,
    SELF_UPDATES,
    SHAPING,
)
from ..sites import enclosing_module, user_frame, user_site
from ..window import BACKWARD, FORWARD, GRADIENTS, OPTIMIZER

if TYPE_CHECKING:
    from ..session import Session

Reaction = Callable[[Any, "tuple[Any, ...]", "dict[str, Any]", Any], None]

DTYPE_NAMES = {
    dtype: str(dtype).removeprefix("torch.") for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)
}
LOW = frozenset(dtype for dtype, name in DTYPE_NAMES.items() if name in FLOATING and FLOATING[name].bits < 32)
LARGEST = {dtype: FLOATING[name].max for dtype, name in DTYPE_NAMES.items() if name in FLOATING}

Marks = dict[str, Any]
"""What a value descends from; each mark carries the Observation it may confirm, or True."""

SURVIVES: dict[str, frozenset[str]] = {
    "pointwise": frozenset(
        {"position", "square_mean", "softmax", "grad", "grad_norm", "param", "from", "eps", "counts"}
    ),
    "shaping": frozenset(
        {"position", "square", "square_mean", "softmax", "grad", "grad_norm", "param", "from", "counts"}
    ),
    "reducing": frozenset({"softmax", "grad", "grad_norm"}),
}
"""Which marks live on through which class of op. A matmul ends all of them."""


@dataclass(slots=True)
class Plan:
    """How to react to one op, by phase."""

    name: str
    before: Callable[..., None] | None = None
    after: tuple[Reaction | None, Reaction | None, Reaction | None, Reaction | None] = (None, None, None, None)
    writes: tuple[int, ...] = ()


@dataclass(slots=True)
class Write:
    """In-place updates of one place in memory that no gradient flows through."""

    tensor: weakref.ref[Any]
    storage: Any
    dtype: Any
    shape: tuple[int, ...]
    site: Site | None
    name: str
    clock: set[int] = field(default_factory=set)
    count: int = 0
    sources: set[str] = field(default_factory=set)
    updates_itself: bool = False
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Lineage:
    """How often a value was replaced by one computed from it, at the line where that begins."""

    generation: int
    start: tuple[str, int]
    clock: int
    dtype: Any
    from_parameter: bool


class OpMode(private.DispatchMode):  # type: ignore[misc]
    """The dispatch mode itself: as little as can be done per op."""

    supports_higher_order_operators = True

    def __init__(self, probe: OpProbe) -> None:
        super().__init__()
        self.probe = probe
        self.plans = probe.plans
        self.window = probe.session.window

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # The default wraps this method in torch._disable_dynamo: 4 of the 9 µs an empty mode costs. hide_from_dynamo
        # does the same for less.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for kind in types:
            if kind not in private._PLAIN:
                return NotImplemented
        plan = self.plans.get(func)
        if plan is None:
            plan = self.probe.plan(func)
        if plan.before is not None:
            plan.before(plan, func, args, kwargs or {})
        out = func(*args, **kwargs) if kwargs else func(*args)
        react = plan.after[self.window.phase]
        if react is not None:
            self.probe.run(react, func, args, kwargs or {}, out)
        return out


class OpProbe:
    """Plans, marks and what the reactions found."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.ledger = session.ledger
        self.window = session.window
        self.replay = Replay(session.ledger)
        self.plans: dict[Any, Plan] = {}
        self.marks: StorageMap[Marks] = StorageMap()
        self.writes: dict[tuple[int, int, int], Write] = {}
        self.lineage: StorageMap[Lineage] = StorageMap()
        self.lineage_sites: dict[tuple[str, int], Site | None] = {}
        self.param_writes: dict[int, set[str]] = {}
        self.masters: StorageMap[str] = StorageMap()
        """float32 tensors that low-precision parameters are copied from."""
        self.scalar_sites: dict[int, Site] = {}
        """Autograd sequence number -> the line of a low-precision one-element result."""
        self.norm_read = False
        """A gradient norm became a Python number since backward."""
        self.gradients_rescaled = False
        """Gradients were multiplied by something that is not their own norm since backward."""
        self.ops = 0
        self.unattributed = 0
        self.mode: OpMode | None = None
        self.hand_written_at: Site | None = None
        """Where a loop without an Optimizer updates its parameters."""
        self._leaves: dict[int, weakref.ref[Any]] = {}

    # -- installing

    def install(self) -> None:
        self.mode = OpMode(self)
        private.insert_at_bottom(self.mode)

    def remove(self) -> None:
        if self.mode is not None:
            private.take_out(self.mode)
            self.mode = None
        self.marks.clear()
        self.replay.shadows.clear()

    # -- plans

    def plan(self, func: Any) -> Plan:
        """Chooses, once, how to react to an op."""
        self.plans[func] = plan = self._choose(func)
        return plan

    def _choose(self, func: Any) -> Plan:
        schema = getattr(func, "_schema", None)
        if schema is None:
            return Plan(name=str(func))
        space, _, name = schema.name.partition("::")
        written = tuple(
            i for i, arg in enumerate(schema.arguments) if arg.alias_info is not None and arg.alias_info.is_write
        )
        if space in ("c10d", "_c10d_functional"):
            if name in REDUCTION_COLLECTIVES:
                return Plan(name, after=(None, self.reduces_gradients, self.reduces_gradients, None))
            return Plan(name)
        if space != "aten":
            return Plan(name)
        if name in BATCH_NORMS:
            return Plan(name, after=(self.normalises_batch, None, None, None))
        if written and name.endswith("_"):
            return Plan(
                name,
                before=self.before_write,
                after=(self.wrote, self.wrote_in_backward, self.wrote_gradient, self.wrote_in_optimizer),
                writes=written,
            )
        special: dict[str, Reaction] = {
            "_log_softmax": self.log_softmax,
            "_softmax": self.softmax,
            "topk": self.consumes_softmax,
            "sort": self.consumes_softmax,
            "multinomial": self.consumes_softmax,
            "log": self.consumes_softmax,
            "binary_cross_entropy": self.binary_cross_entropy,
            "arange": self.arange,
            "cumsum": self.cumsum,
            "_to_copy": self.casts,
            "sin": self.takes_angle,
            "cos": self.takes_angle,
            "square": self.squares,
            "pow": self.squares,
            "mul": self.squares,
            "rsqrt": self.roots,
            "sqrt": self.roots,
            "mean": self.reduces,
            "sum": self.reduces,
            "var": self.reduces,
            "std": self.reduces,
        }
        kind = self._kind(name)
        if kind is None and name not in special:
            if name == "_log_softmax_backward_data":
                return Plan(name, after=(None, self.log_softmax_backward, None, None))
            if name == "_local_scalar_dense":
                return Plan(name, after=(None, None, self.reads_number, None))
            if name in MATMULS:
                return Plan(name, after=(self.counts, self.gradient_matmul, None, None))
            if name in NORMS:
                return Plan(name, after=(self.reduces, None, self.gradient_norm, None))
            return Plan(name, after=(self.counts, None, None, None))
        forward = special.get(name, self.passes)
        in_gradients = self.gradient_norm if name in NORMS else self.passes_gradient
        return Plan(name, after=(forward, None, in_gradients, self.casts_in_optimizer if name == "_to_copy" else None))

    @staticmethod
    def _kind(name: str) -> str | None:
        if name in POINTWISE:
            return "pointwise"
        if name in SHAPING:
            return "shaping"
        if name in REDUCING:
            return "reducing"
        return None

    def run(self, react: Reaction, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Runs a reaction; a fault of ours becomes a note and never reaches the user's program."""
        try:
            react(func, args, kwargs, out)
        except Exception as error:
            self.session.note_fault(f"reaction to {func}", error)

    # -- marks

    def _inherit(self, kind: str, args: Any, out: Any) -> Marks | None:
        """The marks of the inputs that survive this class of op, put on the output."""
        if not self.marks:
            return None
        found: Marks | None = None
        for arg in args:
            items = arg if isinstance(arg, (list, tuple)) else (arg,)
            for item in items:
                if isinstance(item, Tensor):
                    marks = self.marks.get(item)
                    if marks:
                        found = {**found, **marks} if found else marks
        if not found:
            return None
        kept = {mark: value for mark, value in found.items() if mark in SURVIVES[kind]}
        if kept:
            self._mark(out, kept)
        return kept

    def _mark(self, out: Any, marks: Marks) -> None:
        for tensor in out if isinstance(out, (list, tuple)) else (out,):
            if isinstance(tensor, Tensor):
                old = self.marks.get(tensor)
                self.marks.set(tensor, {**old, **marks} if old else dict(marks))

    # -- forward

    def counts(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        self.ops += 1
        if not torch.is_grad_enabled():
            self.unattributed += 1
        dtype = getattr(out, "dtype", None)
        if dtype in LOW:
            self.check_constants(func, args, out)
            if out.numel() == 1 and torch.is_grad_enabled() and self._differentiable(args):
                # The node of this op was made just before it ran, so it has the number before the next one.
                self.scalar_sites[private.next_sequence_number() - 1] = user_site() or Site("", 0)

    def passes(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Pointwise and shaping ops: marks go through, constants are checked."""
        dtype = getattr(out, "dtype", None)
        if dtype is torch.float32 or dtype is torch.float64:
            self.ops += 1
            return
        self.counts(func, args, kwargs, out)
        name = self.plans[func].name
        kind = self._kind(name) or "pointwise"
        marks = self._inherit(kind, args, out)
        if dtype in LOW and kind == "pointwise":
            self._descend(args, out, marks)

    def _descend(self, args: Any, out: Any, marks: Marks | None) -> None:
        """Keeps which long-lived low-precision values a value without gradient was computed from, elementwise."""
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        if any(t.requires_grad and not self.session.is_parameter(t) for t in tensors) or (
            torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
        ):
            return
        origins: frozenset[int] = (marks or {}).get("from", frozenset())
        here, now, from_parameter = self._line(), self.window.micro_batches, False
        line = Lineage(1, here, now, out.dtype, False)
        for tensor in tensors:
            if self.session.is_parameter(tensor):
                self._mark(out, {"param": True})
                from_parameter = True
                continue
            if "param" in (self.marks.get(tensor) or {}):
                from_parameter = True
            if tensor.dtype not in LOW or tensor.numel() != out.numel():
                continue
            origins |= {private.storage_key(tensor)}
            older = self.lineage.get(tensor)
            if older is not None and older.clock == now and older.generation >= line.generation:
                line = older
            elif older is not None and older.clock < now and older.start == here:
                line = Lineage(max(line.generation, older.generation + 1), here, now, out.dtype, older.from_parameter)
        if origins and len(origins) <= 8:
            self._mark(out, {"from": origins})
            self.lineage.set(out, replace(line, from_parameter=line.from_parameter or from_parameter))
            if line.generation >= 2 and here not in self.lineage_sites:
                self.lineage_sites[here] = user_site()

    def check_constants(self, func: Any, args: Any, out: Any) -> None:
        """A finite literal that is not finite in the result's dtype (PA406), or that rounds to nothing (PA407)."""
        largest = LARGEST[out.dtype]
        for arg in args[:4]:
            if type(arg) not in (float, int) or arg == 0:
                continue
            size = abs(arg)
            if size > largest and size != float("inf"):
                name = self.plans[func].name
                if name.startswith(("clamp", "hardtanh")):
                    return
                key = ("constant", func, float(arg), out.dtype, self._line())
                seen = self.ledger.get(key) or self.ledger.put(
                    key,
                    Observation(
                        Kind.CONSTANT,
                        DTYPE_NAMES[out.dtype],
                        Role.ACTIVATION,
                        user_site(),
                        module=self.session.module_name(enclosing_module(torch.nn.Module)),
                        detail=f"{arg:g} in {name}",
                        attrs={"overflows": True, "value": float(arg)},
                    ),
                )
                seen.count += 1
                if seen.count <= 4:
                    self.ledger.defer(nonfinite(out), self.share(seen, "inf_share"))
            elif size < 1e-4 and rounds_to(float(arg), DTYPE_NAMES[out.dtype]) == "zero":
                name = self.plans[func].name
                if name in ("add", "clamp_min", "clamp", "maximum"):
                    self._mark(out, {"eps": (user_site(), float(arg))})

    @staticmethod
    def _line() -> tuple[str, int]:
        frame = user_frame()
        return (frame.f_code.co_filename, frame.f_lineno or 0) if frame else ("", 0)

    @staticmethod
    def share(seen: Observation, name: str) -> Callable[[list[float]], None]:
        """Keeps the largest share of bad elements measured for an observation."""

        def use(values: list[float]) -> None:
            bad, total = values[0], values[1]
            seen.evidence[name] = max(seen.evidence.get(name, 0.0), bad / total if total else 0.0)
            if len(values) > 2 and values[2] > 0 and seen.dtype in FLOATING:
                import math

                bits = math.log2(FLOATING[seen.dtype].max / values[2])
                seen.evidence["headroom"] = min(seen.evidence.get("headroom", bits), bits)

        return use

    def squares(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """x², the start of every norm statistic; other powers and products just pass."""
        name = self.plans[func].name
        squared = (
            (
                name == "square"
                or (name == "pow" and len(args) > 1 and args[1] == 2)
                or (
                    name == "mul"
                    and isinstance(args[1], Tensor)
                    and private.storage_key(args[0]) == private.storage_key(args[1])
                )
            )
            if getattr(out, "dtype", None) in LOW
            else False
        )
        if name == "pow" and len(args) > 1 and args[1] == -0.5:
            self.roots(func, args, kwargs, out)
            return
        self.passes(func, args, kwargs, out)
        if not squared or out.numel() == 1:
            return
        if not (args[0].requires_grad and torch.is_grad_enabled()):
            return
        seen = self._suspect("norm", Role.NORM_COMPUTATION, out.dtype, func)
        seen.attrs["hand_written"] = True
        self._mark(out, {"square": seen})
        if seen.count <= 4:
            self.ledger.defer(nonfinite(out), self.share(seen, "inf_share"))

    def reduces(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """mean or sum of squares, var, and other reductions."""
        dtype = getattr(out, "dtype", None)
        name = self.plans[func].name
        if dtype not in LOW:
            self.ops += 1
            return
        self.counts(func, args, kwargs, out)
        marks = self._inherit("reducing", args, out)
        if marks and "softmax" in marks and out.numel() == 1 and torch.is_grad_enabled():
            self._confirm(marks["softmax"], feeds="loss")
        if out.numel() == 1 or not isinstance(args[0], Tensor):
            return
        before = self.marks.get(args[0])
        square = before.get("square") if before else None
        if square is not None:
            self._mark(out, {"square_mean": square})
        elif name in ("var", "std") and args[0].requires_grad and torch.is_grad_enabled():
            seen = self._suspect("norm", Role.NORM_COMPUTATION, dtype, func)
            seen.attrs["hand_written"] = True
            self._mark(out, {"square_mean": seen})

    def roots(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """rsqrt or sqrt of a mean of squares: a norm written by hand."""
        self.passes(func, args, kwargs, out)
        marks = self.marks.get(args[0]) if getattr(out, "dtype", None) in LOW else None
        if marks:
            if "square_mean" in marks:
                self._confirm(marks["square_mean"])
            self._meets_eps(marks, "rsqrt", out)

    def _meets_eps(self, marks: Marks, feeds: str, out: Any) -> None:
        if "eps" not in marks:
            return
        site, value = marks["eps"]
        key = ("eps", site, value, out.dtype)
        seen = self.ledger.get(key) or self.ledger.put(
            key,
            Observation(
                Kind.CONSTANT,
                DTYPE_NAMES[out.dtype],
                Role.ACTIVATION,
                site,
                detail=f"{value:g} before {feeds}",
                attrs={"overflows": False, "rounds_to": "zero", "feeds": feeds, "value": value},
            ),
        )
        seen.count += 1

    def _suspect(self, what: str, role: Role, dtype: Any, func: Any) -> Observation:
        """An observation at this line, not yet confirmed."""
        frame = user_frame()
        where = (frame.f_code.co_filename, frame.f_lineno) if frame else None
        key = (what, role, dtype, where)
        seen = self.ledger.get(key)
        if seen is None:
            seen = self.ledger.put(
                key,
                Observation(
                    Kind.HOLDS,
                    DTYPE_NAMES[dtype],
                    role,
                    user_site(),
                    module=self.session.module_name(enclosing_module(torch.nn.Module)),
                    detail=self.plans[func].name.lstrip("_"),
                    attrs={"autocast": self.session.autocast.words()},
                    confirmed=False,
                ),
            )
        seen.count += 1
        return seen

    @staticmethod
    def _confirm(seen: Observation, **attrs: Any) -> None:
        seen.confirmed = True
        seen.attrs.update(attrs)

    def log_softmax(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        self.ops += 1
        if out.dtype not in LOW or not (args[0].requires_grad and torch.is_grad_enabled()):
            return
        seen = self._suspect("log_softmax", Role.SOFTMAX, out.dtype, func)
        if seen.count <= 4:
            rows = args[0].detach()
            dim = args[1]
            if rows.numel() and dim in (-1, rows.ndim - 1):
                rows = rows.reshape(-1, rows.shape[-1])[: max(1, 65_536 // max(1, rows.shape[-1]))]
                exact = torch.log_softmax(rows.float(), -1)
                kept = out.detach().reshape(-1, out.shape[-1])[: rows.shape[0]].float()
                error = (kept - exact).abs().mean()
                self.ledger.defer([error, torch.ones_like(error)], self.share(seen, "log_prob_error"))

    def log_softmax_backward(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """A gradient came back through a low log_softmax, so it reached the loss."""
        if getattr(out, "dtype", None) in LOW:
            for seen in self.ledger.observations.values():
                if seen.role is Role.SOFTMAX and not seen.confirmed and seen.detail == "log_softmax":
                    self._confirm(seen, feeds="loss")

    def softmax(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        self.ops += 1
        if out.dtype not in LOW or not torch.is_grad_enabled() or not args[0].requires_grad:
            return
        self._mark(out, {"softmax": self._suspect("softmax", Role.SOFTMAX, out.dtype, func)})

    def consumes_softmax(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """topk, sort, multinomial and log make a softmax's rounding matter; a matmul does not."""
        name = self.plans[func].name
        marks = self.marks.get(args[0]) if args[0].dtype in LOW else None
        if marks and "softmax" in marks:
            self._confirm(marks["softmax"], feeds="topk" if name == "sort" else name)
        if marks and name == "log":
            self._meets_eps(marks, "log", out)
        if name == "log":
            self.passes(func, args, kwargs, out)

    def binary_cross_entropy(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Probabilities rounded before log(p) and log(1 - p): CUDA autocast refuses this, CPU autocast lets it pass."""
        self.counts(func, args, kwargs, out)
        given = args[0]
        cast = (self.marks.get(given) or {}).get("cast_of")
        low = given.dtype if given.dtype in LOW else cast[1] if cast and cast[1] in LOW else None
        if low is None or not torch.is_grad_enabled() or not given.requires_grad:
            return
        frame = user_frame()
        seen = self.session.once(
            ("bce", low, frame.f_lineno if frame else 0),
            Observation(
                Kind.OP,
                DTYPE_NAMES[low],
                Role.LOSS,
                user_site(),
                module=self.session.module_name(enclosing_module(torch.nn.Module)),
                detail=f"probabilities in {DTYPE_NAMES[low]}",
                attrs={"op": "binary_cross_entropy", "under_autocast": bool(self.session.autocast.active())},
            ),
        )
        values = sample(given)
        if values is not None and seen.count <= 4:
            certain = ((values == 0) | (values == 1)).sum()
            self.ledger.defer([certain, torch.full_like(certain, values.numel())], self.share(seen, "certain_share"))

    def arange(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        if out.dtype in LOW:
            self._position(out, out, func)
        elif not out.dtype.is_floating_point:
            self._mark(out, {"position": None})

    def cumsum(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        if out.dtype in LOW:
            values = args[0]
            limit = FLOATING[DTYPE_NAMES[out.dtype]].max_exact_integer
            seen = self._suspect("counts", Role.POSITIONS, out.dtype, func)
            seen.detail = "cumsum"
            seen.attrs["representable"] = True
            counts = (values == values.round()).all() & (out.abs().amax() >= limit) if out.numel() else out.sum() * 0
            exact = torch.cumsum(values.float(), args[1])
            wrong = (exact != out.float()).sum()

            def use(numbers: list[float]) -> None:
                if numbers[0] and numbers[1]:
                    seen.attrs["representable"] = False
                    seen.confirmed = True
                    seen.evidence["positions_wrong"] = numbers[1] / max(1.0, numbers[2])

            self.ledger.defer([counts, wrong, torch.tensor(float(out.numel()), device=out.device)], use)
        elif not out.dtype.is_floating_point:
            self._mark(out, {"position": None})

    def _position(self, exact: Tensor, low: Tensor, func: Any) -> None:
        """Positions were put into a low dtype; whether they fit is measured."""
        if low.numel() == 0:
            return
        seen = self._suspect("positions", Role.POSITIONS, low.dtype, func)
        seen.detail = f"positions up to {low.numel() - 1}" if exact is low else "positions"
        seen.attrs["representable"] = True
        limit = FLOATING[DTYPE_NAMES[low.dtype]].max_exact_integer
        if exact is low:
            wrong = (low.float().diff() != low.float().diff()[:1]).sum() if low.numel() > 2 else low.sum() * 0
        else:
            wrong = (low.to(exact.dtype) != exact).sum()
        largest = exact.abs().amax().float()

        def use(numbers: list[float]) -> None:
            if numbers[0] and numbers[1] > limit:
                seen.attrs["representable"] = False
                seen.confirmed = True
                seen.evidence["positions_wrong"] = max(
                    seen.evidence.get("positions_wrong", 0.0), numbers[0] / max(1.0, numbers[2])
                )
                seen.detail = f"positions up to {numbers[1]:.0f}; exact only up to {limit}"

        self.ledger.defer([wrong, largest, torch.tensor(float(low.numel()), device=low.device)], use)

    def casts(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        source = args[0]
        if out.dtype in LOW and not source.dtype.is_floating_point:
            marks = self.marks.get(source)
            if marks and "position" in marks:
                self._position(source, out, func)
                self._mark(out, {"position": None})
                self.ops += 1
                return
        self.passes(func, args, kwargs, out)
        if out.dtype in LOW or source.dtype in LOW:
            self._mark(out, {"cast_of": (private.storage_key(source), source.dtype, private.weak_storage(source))})
            if self.session.is_parameter(source) and not torch.is_grad_enabled():
                self._mark(out, {"param": True})

    def takes_angle(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """sin and cos of low-precision positions × frequencies: the angle itself is rounded."""
        self.passes(func, args, kwargs, out)
        angle = args[0]
        if out.dtype not in LOW:
            return
        marks = self.marks.get(angle)
        if not marks or "position" not in marks or not angle.numel():
            return
        seen = self._suspect("angle", Role.POSITIONS, out.dtype, func)
        seen.detail = f"{self.plans[func].name} of positions times frequencies"
        seen.attrs["representable"] = True
        step = 2.0 ** -(FLOATING[DTYPE_NAMES[out.dtype]].mantissa_bits + 1)

        def use(numbers: list[float]) -> None:
            if numbers[0] * step > 0.05:
                seen.attrs["representable"] = False
                seen.confirmed = True
                seen.evidence["phase_error"] = max(seen.evidence.get("phase_error", 0.0), numbers[0] * step)

        self.ledger.defer([angle.abs().amax().float()], use)

    def normalises_batch(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """BatchNorm's running statistics, wherever the call came from."""
        self.ops += 1
        names = [argument.name for argument in func._schema.arguments]
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        training = given.get("training", given.get("train", "with_update" in func._schema.name))
        for name in ("running_mean", "running_var"):
            buffer = given.get(name)
            if isinstance(buffer, Tensor) and training:
                self.session.saw_running_statistics(buffer, name)

    # -- in-place writes

    def before_write(self, plan: Plan, func: Any, args: Any, kwargs: Any) -> None:
        """Replays an update of a low-precision tensor in float32 before it happens."""
        if plan.name not in REPLAYABLE or self.session.settings["values"] == "off":
            return
        targets = [t for t in self._targets(plan, args) if t.dtype in LOW]
        if not targets:
            return
        phase = self.window.phase
        if phase == FORWARD and torch.is_grad_enabled() and self._differentiable(args):
            return
        if phase == BACKWARD and not self.session.is_gradient(targets[0]):
            return
        try:
            group = "optimizer" if phase == OPTIMIZER else "other"
            self.replay.follow(func, args, kwargs, targets, group)
        except Exception as error:
            self.session.note_fault(f"replay of {func}", error)

    @staticmethod
    def _targets(plan: Plan, args: Any) -> list[Tensor]:
        out: list[Tensor] = []
        for index in plan.writes:
            if index < len(args):
                value = args[index]
                if isinstance(value, Tensor):
                    out.append(value)
                elif isinstance(value, (list, tuple)):
                    out += [item for item in value if isinstance(item, Tensor)]
        return out

    @staticmethod
    def _differentiable(args: Any) -> bool:
        return any(isinstance(arg, Tensor) and arg.requires_grad for arg in args)

    def wrote(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """An in-place op outside of backward and optimizer: an accumulator, perhaps."""
        self.ops += 1
        plan = self.plans[func]
        first = args[0] if args else None
        tensor = first[0] if isinstance(first, (list, tuple)) and first else first
        if not isinstance(tensor, Tensor) or not tensor.dtype.is_floating_point:
            return
        if self.window.phase == FORWARD and self.session.is_gradient(tensor):
            self.wrote_gradient(func, args, kwargs, out)
            return
        if torch.is_grad_enabled() and self._differentiable(args):
            if tensor.dtype in LOW:
                self.check_constants(func, args, tensor)
            return
        if plan.name in RESETS:
            for target in self._targets(plan, args):
                self.replay.forget(target)
                self.session.gradient_reset(target)
            return
        sources = args[1] if len(args) > 1 else None
        for index, target in enumerate(self._targets(plan, args)):
            source = sources[index] if isinstance(sources, (list, tuple)) and index < len(sources) else sources
            more = [arg for arg in args[2:] if isinstance(arg, Tensor)]
            self._book_write(plan.name, target, [source, *more])

    def _book_write(self, name: str, target: Tensor, sources: list[Any]) -> None:
        if self.session.is_parameter(target):
            self._book_parameter_write(name, target, sources[0])
            return
        key = (private.storage_key(target), target.storage_offset(), target.numel())
        write = self.writes.get(key)
        if write is None or write.storage.expired():
            write = self.writes[key] = Write(
                weakref.ref(target),
                private.weak_storage(target),
                target.dtype,
                tuple(target.shape),
                user_site(),
                name,
            )
        write.clock.add(self.window.micro_batches)
        write.count += 1
        if name in SELF_UPDATES:
            write.updates_itself = True
        for source in sources:
            if not isinstance(source, Tensor):
                continue
            marks = self.marks.get(source) or {}
            if name in COPIES and key[0] in marks.get("from", ()):
                write.updates_itself = True
            write.sources |= {mark for mark in ("param", "grad") if mark in marks}
            if self.session.is_parameter(source):
                write.sources.add("param")
            if self.session.is_gradient(source):
                write.sources.add("grad")
            if self.session.is_loss(source):
                write.sources.add("loss")

    def _book_parameter_write(self, name: str, target: Tensor, source: Any) -> None:
        """Whether a parameter is updated in place, or only copied from a float32 master."""
        kinds = self.param_writes.setdefault(private.storage_key(target), set())
        self._leaves.setdefault(private.storage_key(target), weakref.ref(target))
        if self.window.phase != OPTIMIZER:
            self.session.wrote_parameter()
            if self.hand_written_at is None:
                self.hand_written_at = user_site()
        if target.dtype not in LOW:
            kinds.add("update")
            return
        if name in COPIES and isinstance(source, Tensor):
            cast = (self.marks.get(source) or {}).get("cast_of")
            if source.dtype not in LOW and source.dtype.is_floating_point:
                self.masters.set(source, "master")
                kinds.add(f"copy:{private.storage_key(source)}")
                return
            if cast and cast[1] not in LOW and not cast[2].expired():
                kinds.add(f"copy:{cast[0]}")
                return
        if name not in RESETS:
            kinds.add("update")

    def wrote_in_optimizer(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        self.ops += 1
        plan = self.plans[func]
        if torch.is_grad_enabled() and self._differentiable(args):
            return
        sources = args[1] if len(args) > 1 else None
        for index, target in enumerate(self._targets(plan, args)):
            if self.session.is_parameter(target):
                source = sources[index] if isinstance(sources, (list, tuple)) and index < len(sources) else sources
                self._book_parameter_write(plan.name, target, source)

    def casts_in_optimizer(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        if out.dtype in LOW:
            source = args[0]
            self._mark(out, {"cast_of": (private.storage_key(source), source.dtype, private.weak_storage(source))})

    # -- backward and gradients

    def wrote_in_backward(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        self.ops += 1

    def gradient_matmul(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """A matmul of backward: where float16 gradients are first seen to underflow."""
        self.ops += 1
        if getattr(out, "dtype", None) is torch.float16 and self.session.float16_gradients_sampled < 8:
            self.session.float16_gradients_sampled += 1
            self.ledger.defer(underflow(out), self.session.add_underflow)

    def reduces_gradients(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """A sum over ranks of gradients; counters, flags and norms are too small or not floating."""
        tensors: list[Tensor] = []
        for arg in args[:2]:
            tensors += [arg] if isinstance(arg, Tensor) else []
            for item in arg if isinstance(arg, (list, tuple)) else ():
                tensors += [item] if isinstance(item, Tensor) else list(item) if isinstance(item, (list, tuple)) else []
        for tensor in tensors[:1]:
            if not tensor.dtype.is_floating_point or tensor.numel() <= 1:
                continue
            if self.window.phase != BACKWARD and not (
                self.session.is_gradient(tensor) or "grad" in (self.marks.get(tensor) or {})
            ):
                continue
            self.session.saw_gradient_reduction(tensor, self.plans[func].name)

    def passes_gradient(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Between backward and step: values computed from gradients, and from their norms."""
        self.ops += 1
        found: Marks = {}
        for arg in args:
            for item in arg if isinstance(arg, (list, tuple)) else (arg,):
                if isinstance(item, Tensor):
                    if self.session.is_gradient(item):
                        found["grad"] = True
                    found.update(self.marks.get(item) or {})
        name = self.plans[func].name
        norm_like = name in ("sum", "mean", "amax", "max")
        if norm_like and "grad" in found and isinstance(out, Tensor) and out.numel() == 1:
            self._saw_gradient_norm(func, out)
            found["grad_norm"] = True
        if "grad_norm" in found and isinstance(out, Tensor) and out.numel() == 1 and name == "_to_copy":
            self._saw_gradient_norm(func, out)
        kept = {mark: True for mark in ("grad", "grad_norm") if mark in found}
        if name in NORMS or norm_like:
            kept.pop("grad", None) if "grad_norm" in kept else None
        if kept:
            self._mark(out, kept)
        if name == "_to_copy" and isinstance(out, Tensor) and (out.dtype in LOW or args[0].dtype in LOW):
            self._mark(out, {"cast_of": (private.storage_key(args[0]), args[0].dtype, private.weak_storage(args[0]))})
        if "grad" in found and name in ("mul", "div", "_foreach_mul", "_foreach_div"):
            self.gradients_rescaled = True
        if isinstance(out, Tensor) and out.dtype in LOW and self._kind(name) == "pointwise" and not found:
            self._descend(args, out, self._inherit("pointwise", args, out))

    def gradient_norm(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        self.ops += 1
        first = args[0][0] if isinstance(args[0], (list, tuple)) and args[0] else args[0]
        if isinstance(first, Tensor):
            marks = self.marks.get(first) or {}
            if self.session.is_gradient(first) or "grad" in marks or "grad_norm" in marks:
                self._mark(out, {"grad_norm": True})
                for tensor in out if isinstance(out, (list, tuple)) else (out,):
                    self._saw_gradient_norm(func, tensor)

    def _saw_gradient_norm(self, func: Any, norm: Tensor) -> None:
        if norm.dtype not in FLOATING_DTYPES:
            return
        seen = self._suspect("gradient_norm", Role.GRADIENT_NORM, norm.dtype, func)
        seen.confirmed = True
        seen.detail = self.plans[func].name.lstrip("_")
        if norm.dtype in LOW and seen.count <= 64:
            self.ledger.defer(nonfinite(norm), self.share(seen, "inf_share"))

    def reads_number(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        if "grad_norm" in (self.marks.get(args[0]) or {}):
            self.norm_read = True

    def wrote_gradient(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Gradients changed between backward and step: clipping, unscaling, averaging."""
        plan = self.plans[func]
        targets = self._targets(plan, args)
        if not any(self.session.is_gradient(target) for target in targets):
            self.wrote(func, args, kwargs, out)
            return
        self.ops += 1
        if plan.name in RESETS:
            for target in targets:
                self.replay.forget(target)
                self.session.gradient_reset(target)
            return
        factor = args[1] if len(args) > 1 else None
        factors = factor if isinstance(factor, (list, tuple)) else [factor]
        from_norm = any(isinstance(f, Tensor) and "grad_norm" in (self.marks.get(f) or {}) for f in factors)
        by_number = self.norm_read and any(isinstance(f, (int, float)) and 0 <= f <= 1 for f in factors)
        if plan.name.startswith(("clamp", "_foreach_clamp")) or (
            plan.name in ("mul_", "_foreach_mul_", "div_", "_foreach_div_") and (from_norm or by_number)
        ):
            self.session.saw_clip(targets)
        elif plan.name in ("mul_", "div_", "_foreach_mul_", "_foreach_div_", "copy_", "_foreach_copy_"):
            self.gradients_rescaled = True

    def written_leaves(self) -> list[Tensor]:
        """Parameters that were written to and are still there."""
        return [leaf for leaf in (ref() for ref in self._leaves.values()) if leaf is not None]

    # -- boundaries

    def step_boundary(self) -> None:
        self.marks.drop_expired()
        self.norm_read = False
        self.gradients_rescaled = False
        for key in [key for key, write in self.writes.items() if write.storage.expired()]:
            del self.writes[key]


FLOATING_DTYPES = frozenset(dtype for dtype, name in DTYPE_NAMES.items() if name in FLOATING)
PHASES = (FORWARD, BACKWARD, GRADIENTS, OPTIMIZER)
