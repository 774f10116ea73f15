"""Which operation made the first value that is not finite: what each result came from, followed back from a NaN.

Keeps for every floating result its smallest and largest element (NaN where there is one) as 0-d tensors, which are read
only where a loss, a gradient or a parameter turned out not to be finite. It is on in the last step before the window,
where most such runs show it first, and in a traced step that follows one in which something was not finite.

Known limitations: what a compiled region or a library's kernel computes inside is one operation; a value that went
through a Python number descends from nothing; a step of more than 20,000 operations is followed from its last ones on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...model.vocabulary import Site
from .. import torch_private as private
from ..events import BackwardBegan, Bus, GoesOn, OptimizerBuilt, RestBegan, WindowOpened
from ..guard import Guard
from ..operations import BACKWARD, FORWARD, GRADIENTS, OPTIMIZER, Follower, Operations
from ..optable import COPIES, REDUCTION_COLLECTIVES, RESETS
from ..process.ledger import Ledger
from ..sites import enclosing_module, user_site
from .modules import Modules
from .window import Window

MOST = 20_000
"""Results that are kept of one step; two 0-d tensors each."""
LONG = 3
"""So many times that before the first backward is a long evaluation, and no longer followed."""
READABLE = frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16})
MASKING = frozenset(
    "masked_fill masked_fill_ where full full_like new_full fill_ scalar_tensor lift_fresh constant_pad_nd "
    "index_put index_put_ masked_scatter".split()
)
"""What puts -inf into scores on purpose: an infinity from here is no overflow."""
DIRECTIONS = {FORWARD: "forward", BACKWARD: "backward", GRADIENTS: "after backward", OPTIMIZER: "optimizer"}
FINE, INF, NAN = range(3)


class Origin(NamedTuple):
    """The first operation of a chain that ends in a value which is not finite."""

    operation: str
    """Its aten name: "div"; "" where the chain begins with something that no operation was seen to make."""
    value: str
    """What it gave: "nan" or "inf"."""
    direction: str
    """When it ran: one of DIRECTIONS."""
    site: Site | None
    module: str
    given: str = ""
    """Where an input of it was not finite already: "parameter", "value" (read in, or made out of sight), "ranks"."""


class Result:
    """One floating result of one operation, or a tensor that none was seen to make."""

    __slots__ = (
        "direction",
        "extremes",
        "masks",
        "module",
        "name",
        "node",
        "parents",
        "partial",
        "scalar",
        "site",
        "source",
    )

    def __init__(self, name: str, extremes: Any, parents: tuple[int, ...] = (), source: str = "") -> None:
        self.name = name
        self.extremes = extremes
        """Smallest and largest element, 0-d; None where it cannot be read."""
        self.parents = parents
        self.source = source
        """For what no operation was seen to make: "parameter" or "value"."""
        self.partial = False
        """Only part of its memory was written: what was there before counts too, and is the first parent."""
        self.masks = False
        self.scalar = False
        """It has one element, and gradients flow through it."""
        self.direction = FORWARD
        self.site: Site | None = None
        self.module: Any = None
        self.node = -1
        """The autograd node that this op made in forward, or runs for in backward: its sequence number."""


class Plan(NamedTuple):
    """How to follow one op."""

    func: Any
    name: str
    written: tuple[int, ...]
    follows: bool
    """False for views: their memory is known."""


Operands = list[tuple[Tensor, int]]
"""The floating inputs of an op, and the number of each one's last result."""


class Origins(Follower):
    """The results of the step that is going on."""

    def __init__(
        self, bus: Bus, operations: Operations, guard: Guard, ledger: Ledger, window: Window, modules: Modules
    ) -> None:
        self._ledger = ledger
        self._guard = guard
        self._modules = modules
        self.window = window
        self.following = False
        """Asked by our modes, once per op."""
        operations.follower = self
        self._plans: dict[int, Plan] = {}
        self._results: list[Result] = []
        self._made: dict[int, tuple[int, Any]] = {}
        """Storage -> the last result written to it, and a weak reference that pins the key."""
        self._forward: dict[int, int] = {}
        """Autograd sequence number -> the forward result of that node."""
        self._states: list[int] | None = None
        self._evaluations = 0
        """How often too much was kept before any backward."""
        self._waits = False
        bus.on(BackwardBegan, self._backward_began)
        bus.on(OptimizerBuilt, self._optimizer_built)
        bus.on(RestBegan, lambda event: self.end())
        bus.on(WindowOpened, lambda event: self.end())
        bus.on(GoesOn, self._goes_on)

    def _optimizer_built(self, event: OptimizerBuilt) -> None:
        if not self.window.tracing and not self.window.attempts:
            self.begin()

    def _backward_began(self, event: BackwardBegan) -> None:
        """What ran for long before it trained nothing."""
        if self._waits:
            self._waits = False
            self.begin()

    def _goes_on(self, event: GoesOn) -> None:
        """Before the window, only the last step is followed."""
        if not self.window.tracing:
            if self.window.step >= self.window.skip:
                self.begin()
            else:
                self.end()

    def begin(self) -> None:
        """Follows every op that one of our modes sees from here on. Nothing where no values may be read."""
        self.following = self._ledger.measures

    def end(self) -> None:
        self.following = False
        self.forget()

    def forget(self) -> None:
        """A new step begins, or too much was kept."""
        self._results.clear()
        self._made.clear()
        self._forward.clear()
        self._states = None

    def last(self, tensor: Tensor) -> int:
        """The number of the last result that was written to this tensor's memory; -1 where none was seen."""
        return self._made.get(private.storage_key(private.local(tensor)), (-1, None))[0]

    # -- what the mode tells

    def before(self, func: Any, args: Any, kwargs: Any) -> Operands | None:
        """The floating inputs of an op that is about to run, each with its number: what is new gets one.

        None for what makes no new value, a view.
        """
        plan = self._plans.get(id(func))
        if plan is None:
            plan = self._plans[id(func)] = _plan(func)
        if not plan.follows:
            return None
        found: Operands = []
        try:
            for value in (*args, *kwargs.values()):
                for tensor in value if isinstance(value, (list, tuple)) else (value,):
                    if isinstance(tensor, Tensor) and tensor.dtype in READABLE:
                        found.append((tensor, self._known(tensor)))
        except Exception as error:
            self._guard.fault(f"the inputs of {func}", error)
            return None
        return found

    def after(self, func: Any, operands: Operands, args: Any, out: Any) -> None:
        """The op has run."""
        try:
            self._ran(self._plans[id(func)], operands, args, out)
        except Exception as error:
            self._guard.fault(f"the result of {func}", error)

    def _known(self, tensor: Tensor) -> int:
        key = private.storage_key(tensor)
        known = self._made.get(key)
        if known is not None:
            result = self._results[known[0]]
            if result.extremes is None and result.name in REDUCTION_COLLECTIVES:  # it has arrived by now
                result.extremes = extremes(tensor)
            return known[0]
        leaf = tensor.requires_grad and tensor.grad_fn is None
        return self._keep(tensor, Result("", extremes(tensor), source="parameter" if leaf else "value"))

    def _keep(self, tensor: Tensor, result: Result) -> int:
        self._results.append(result)
        number = len(self._results) - 1
        key = private.storage_key(tensor)
        if key:
            self._made[key] = number, private.weak_storage(tensor)
        return number

    def _ran(self, plan: Plan, operands: Operands, args: Any, out: Any) -> None:
        """Each floating result is kept with what it was computed from."""
        if len(self._results) > MOST:
            self.forget()
            self._evaluations += not self.window.clock
            self._waits = self._evaluations > LONG
            self.following = not self._waits
            return
        collective = plan.name in REDUCTION_COLLECTIVES
        direction, node = self._when(operands)
        site = user_site()
        module = enclosing_module(torch.nn.Module) if direction == FORWARD else None
        numbers = {id(tensor): number for tensor, number in operands}
        for tensor, index in _results(plan, args, out):
            parents = _elementwise(operands, numbers, args, index)
            result = Result(plan.name, None if collective else extremes(tensor))
            before = self.last(tensor) if plan.written else -1
            if before >= 0:
                result.partial = tensor.numel() * tensor.element_size() < tensor.untyped_storage().nbytes()
                if plan.name in RESETS or plan.name in COPIES:
                    parents = [number for number in parents if number != before]
            result.parents = (before, *parents) if result.partial else tuple(parents)
            result.masks = plan.name in MASKING
            result.direction, result.site, result.module, result.node = direction, site, module, node
            result.scalar = direction == FORWARD and node >= 0 and tensor.numel() == 1
            number = self._keep(tensor, result)
            if direction == FORWARD and node >= 0:
                self._forward[node] = number

    def _when(self, operands: Operands) -> tuple[int, int]:
        """The direction in which an op runs, and its autograd node's number."""
        phase = self.window.phase
        differentiates = torch.is_grad_enabled() and any(tensor.requires_grad for tensor, _ in operands)
        if phase == BACKWARD and (self.window.creates_graph or not differentiates):
            return BACKWARD, private.running_node()
        if differentiates:  # a forward pass that backward recomputes, a closure's, one after a hand-written step
            return FORWARD, private.next_sequence_number() - 1
        return phase, -1

    # -- what is asked of it

    def ends(self) -> list[tuple[int, str, Any, Site | None]]:
        """The one-element results that nothing differentiable was computed from, losses that met no backward.

        Of those that are not finite: number, "nan" or "inf", dtype and line.
        """
        states = self._read()
        used = {parent for result in self._results if result.node >= 0 for parent in result.parents}
        return [
            (number, "nan" if states[number] == NAN else "inf", result.extremes[0].dtype, result.site)
            for number, result in enumerate(self._results)
            if result.scalar and states[number] != FINE and number not in used
        ]

    def of(self, number: int) -> Origin | None:
        """Where the chain that ends in this result begins; None where the result is finite, or nothing was followed."""
        states = self._read()
        if not 0 <= number < len(states) or states[number] == FINE:
            return None
        after, seen = -1, {number}
        while True:
            result = self._results[number]
            following = self._bad_parent(result, states, seen)
            if following is None:
                return self._origin(number, after, states)
            after, number = number, following
            seen.add(number)

    def _bad_parent(self, result: Result, states: list[int], seen: set[int]) -> int | None:
        """The input to follow on: one that is NaN before one that is infinite, unless that is a mask."""
        bad = [n for n in result.parents if 0 <= n < len(states) and n not in seen and states[n] != FINE]
        for wanted in (NAN, INF):
            chosen = [n for n in bad if states[n] == wanted and not (wanted == INF and self._results[n].masks)]
            if chosen:
                return min(chosen)
        return None

    def _origin(self, number: int, after: int, states: list[int]) -> Origin:
        first = self._results[number]
        given = first.source
        value = "nan" if states[number] == NAN else "inf"
        if first.name in REDUCTION_COLLECTIVES:
            given = "ranks"
        elif given:
            if after < 0:
                return Origin("", value, DIRECTIONS[first.direction], None, "", given)
            first = self._results[after]
        site, module = first.site, first.module
        forward = self._forward.get(first.node) if first.direction == BACKWARD else None
        if forward is not None:
            site, module = self._results[forward].site, self._results[forward].module
        name = self._modules.module_name(module)
        return Origin(first.name.strip("_"), value, DIRECTIONS[first.direction], site, name, given)

    def _read(self) -> list[int]:
        """Whether each result is finite, infinite or NaN: one transfer per device."""
        if self._states is None or len(self._states) != len(self._results):
            numbers = [end for result in self._results if result.extremes is not None for end in result.extremes]
            values = iter(_values(numbers))
            states: list[int] = []
            for result in self._results:
                low, high = (next(values), next(values)) if result.extremes is not None else (0.0, 0.0)
                state = NAN if low != low else INF if low == -INFINITY or high == INFINITY else FINE
                if result.partial and result.parents[0] < len(states):
                    state = max(state, states[result.parents[0]])
                states.append(state)
            self._states = states
        return self._states


INFINITY = float("inf")


def extremes(tensor: Tensor) -> Any:
    """The smallest and the largest element, NaN where any is; None where they cannot be read. No device sync."""
    if tensor.dtype not in READABLE or tensor.layout is not torch.strided or not tensor.numel():
        return None
    if tensor.device.type == "meta" or private.is_capturing(tensor):
        return None
    return torch.aminmax(tensor.values() if tensor.is_nested else tensor)


def _values(numbers: list[Tensor]) -> list[float]:
    """What these 0-d tensors hold, in their order."""
    by_kind: dict[Any, list[int]] = {}
    for index, number in enumerate(numbers):
        by_kind.setdefault((number.device, number.dtype), []).append(index)
    out = [0.0] * len(numbers)
    for indices in by_kind.values():
        for index, value in zip(indices, torch.stack([numbers[i] for i in indices]).tolist(), strict=True):
            out[index] = value
    return out


def _results(plan: Plan, args: Any, out: Any) -> Iterator[tuple[Tensor, int | None]]:
    """The floating tensors that an op wrote or made, and each one's place where the op takes lists."""
    if plan.written:
        groups = [args[index] for index in plan.written if index < len(args)]
    else:
        groups = [out]
    seen: set[int] = set()
    for group in (*groups, *([out] if plan.written and isinstance(out, tuple) else [])):
        many = isinstance(group, (list, tuple))
        for index, tensor in enumerate(group if many else (group,)):
            if isinstance(tensor, Tensor) and tensor.dtype in READABLE and id(tensor) not in seen:
                seen.add(id(tensor))
                yield tensor, index if many and args and isinstance(args[0], (list, tuple)) else None


def _elementwise(operands: Operands, numbers: Mapping[int, int], args: Any, index: int | None) -> list[int]:
    """The numbers of the inputs that make one result: of lists, those at its place.

    `numbers` are those of all operands by their `id`: a list may hold thousands, and each result asks.
    """
    if index is None:
        return [number for _, number in operands]
    given = (arg[index : index + 1] if isinstance(arg, (list, tuple)) else (arg,) for arg in args)
    wanted = dict.fromkeys(id(value) for values in given for value in values)
    return [numbers[each] for each in wanted if each in numbers]


def _plan(func: Any) -> Plan:
    schema = getattr(func, "_schema", None)
    if schema is None:
        return Plan(func, str(func), (), False)
    name = schema.name.partition("::")[2]
    arguments = enumerate(schema.arguments)
    written = tuple(i for i, arg in arguments if arg.alias_info is not None and arg.alias_info.is_write)
    if name in REDUCTION_COLLECTIVES:
        written = (0,)  # their schemas do not say so
    views = any(result.alias_info is not None and not result.alias_info.is_write for result in schema.returns)
    return Plan(func, name, written, not views)
