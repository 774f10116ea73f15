"""Carries operations to those who asked for them: nothing is told at each; all are asked once what to do at all calls.

One call of `torch.add` would cost a microsecond to describe, and there are thousands in a step. So the first time that
an op runs everybody says what is to happen at its calls, by phase and by result; from then on that is a look-up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

FORWARD, BACKWARD, GRADIENTS, OPTIMIZER, CLOSURE, EARLY, BEFORE_WRITE = range(7)
"""Phases: between an optimizer step and backward; inside backward; between backward and the step; inside the step.

CLOSURE: inside the step with gradients on, as the forward pass of a closure is; what asked for FORWARD hears these too.
EARLY: before the window, while births matter.
BEFORE_WRITE: in any phase, before an op writes to what it is given; there is no result yet.
"""
ANY, LOW_RESULTS, OTHER_RESULTS = range(3)
"""At which results a reaction is called: all; tensors in low precision; everything else."""

Reaction = Callable[[str, Any, Any, Any], None]
"""(op name, args, kwargs, result)."""
Registration = tuple[int, Iterable[str], Reaction, bool]
"""(phase, op names, reaction, low_only): how a watcher asks for ops by their names."""


class Op(NamedTuple):
    """One of torch's operations: what holds for each of its calls."""

    func: Any
    """Kept alive: plans are found by its id, since hashing one calls Python code of torch's."""
    name: str
    """Without its namespace: "add_"."""
    aten: bool
    """One of torch's own; else a library's."""
    written: tuple[int, ...]
    """Positions of the arguments it writes to in place."""
    writes: bool
    """It writes to some argument, in place, with `out=`, or as a library's kernel does."""
    by_kernel: tuple[int, ...]
    """Positions of what a library's kernel writes to, in ways that nothing tells."""


class Heard(NamedTuple):
    """What is to happen at the calls of one op."""

    phase: int
    act: Reaction
    results: int = ANY


Asked = tuple[tuple[Reaction, ...], tuple[Reaction, ...]]
"""What to call where the result is low, and where it is not."""


class Plan(NamedTuple):
    """What all listeners together want of one op: made once, and looked up at each call."""

    op: Op
    run: Any
    """What calling the op comes to."""
    foreign: bool
    before: tuple[Reaction, ...]
    """What to call before it writes."""
    asked: tuple[Asked | None, ...]
    """By phase; None where nobody listens."""


class Moment:
    """Where in its step the program is: a tracker says, the taps ask once per op."""

    phase = FORWARD

    def with_gradients(self, args: Any) -> int:
        """The phase that an op with these arguments belongs to, outside of no_grad and of the forward pass."""
        return self.phase


class Follower:
    """Sees every op from before it runs, while it follows: the fewest questions, and the most calls."""

    following = False

    def before(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What `after` is given; None where this op is of no interest."""
        return None

    def after(self, func: Any, known: Any, args: Any, out: Any) -> None:
        """The op has run."""


class Companion:
    """Runs an op beside itself, while it follows: it is given the call, and calls the op itself."""

    following = False

    def around(self, func: Any, args: Any, kwargs: Any, foreign: bool) -> Any:
        """The op's result, of its own call."""
        raise NotImplementedError


class Scout:
    """Says before the window, while it follows, which ops are to be seen as inside of it."""

    follows = False

    def sees(self, args: Any) -> bool:
        return False


class Operations:
    """Who wants to hear of which operations, and what has been made of that so far."""

    def __init__(self) -> None:
        self._listeners: list[Callable[[Op], Iterable[Heard]]] = []
        self.plans: dict[int, Plan] = {}
        """`id` of an op -> what is to happen at its calls, as far as anybody has asked yet."""
        self.follower = Follower()
        self.companion = Companion()
        self.scout = Scout()

    def on(self, choose: Callable[[Op], Iterable[Heard]]) -> None:
        """Has `choose` asked about each op, the first time that it runs; what it wants happens at each call."""
        self._listeners.append(choose)
        self.plans.clear()

    def plan(self, op: Op, run: Any, foreign: bool) -> Plan:
        """Asks everybody what to do at this op's calls, and keeps the answers."""
        low: list[list[Reaction]] = [[] for _ in range(BEFORE_WRITE + 1)]
        other: list[list[Reaction]] = [[] for _ in range(BEFORE_WRITE + 1)]
        for choose in self._listeners:
            for phase, act, results in choose(op):
                for each in (FORWARD, CLOSURE) if phase == FORWARD else (phase,):
                    if results != OTHER_RESULTS:
                        low[each].append(act)
                    if results != LOW_RESULTS:
                        other[each].append(act)
        asked = [(tuple(a), tuple(b)) if a or b else None for a, b in zip(low, other, strict=True)]
        before = tuple(other[BEFORE_WRITE]) if op.writes else ()
        plan = self.plans[id(op.func)] = Plan(op, run, foreign, before, tuple(asked[:BEFORE_WRITE]))
        return plan
