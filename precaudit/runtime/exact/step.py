"""The exact step: the first whole step of the window, what it should have given, and what it lost where."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import torch_private as private
from ..dtypes import DTYPE_NAMES
from ..events import BackwardBegan, Boundary, Bus, FactsTold, StepBegan, StepEnded, WindowClosed, WindowOpened
from ..guard import Guard
from ..operations import FORWARD, GRADIENTS, Companion, Operations
from ..settings import Settings
from ..trackers.micro_batches import GradientsReady
from ..trackers.modules import Modules
from ..trackers.optimizers import state_tensors, trained
from ..trackers.steps import Steps
from ..trackers.window import Window
from .budget import Budget
from .companions import WIDE, wide
from .evidence import add_exact
from .exchange import Exchange
from .follower import Follower
from .forks import Asked, Forks, Roles
from .places import Places
from .scope import Scope

MOST = 20
"""Rows of operations that are told of."""


class ExactStep(Companion):
    """Begins with the window, ends with the first step that updates something."""

    def __init__(
        self,
        bus: Bus,
        operations: Operations,
        guard: Guard,
        settings: Settings,
        window: Window,
        steps: Steps,
        modules: Modules,
    ) -> None:
        self._guard, self._window, self._steps, self._modules = guard, window, steps, modules
        self._places = Places(window, modules)
        self.follower = Follower(guard, self._places.of)
        self.following = False
        """Asked by the mode, once per op."""
        self.budget = Budget(self.follower)
        self.number = 0
        """Which step it was; 0 while it is not over."""
        self._stepped: list[Any] = []
        """The optimizers that have taken their step in it."""
        self._by_hand = False
        """No Optimizer is there."""
        self._held: list[Tensor] | None = None
        """The leaves of a loop without one; None while its exact step has not begun."""
        self._asked = settings.exact
        self._ranks = Exchange(settings.peers_folder or settings.ranks_folder)
        self._scope = Scope(settings.exact_modules, settings.exact_memory)
        self._what_if = Asked(tuple(settings.what_if), settings.stochastic) if settings.what_if else None
        self._roles: Roles | None = None
        self._before: dict[int, Tensor] = {}
        """id of what lasts -> what it held before the optimizer's step."""
        operations.companion = self
        if settings.exact:
            bus.on(WindowOpened, self._opened)
            bus.on(BackwardBegan, self._backward_began)
            bus.on(StepBegan, self._step_began)
            bus.on(StepEnded, self._step_ended)
            bus.on(GradientsReady, self._ready)
            bus.on(Boundary, self._boundary)
            bus.on(WindowClosed, lambda event: self._give_up())
            bus.on(FactsTold, self._facts_told)

    # -- what the mode tells

    def around(self, func: Any, args: Any, kwargs: Any, foreign: bool) -> Any:
        """Runs an op of the program as it would run without us, and in float64 beside that."""
        ready = None
        try:
            if self._by_hand and self._next_begins(args):
                self._turns()
            if self.following:
                ready = self.follower.before(func, args, kwargs)
        except Exception as error:
            self._guard.fault(f"{func} in float64", error)
        if ready is None:
            return private.run_foreign(func, args, kwargs) if foreign else func(*args, **kwargs)
        if not foreign:  # of what is set aside, torch's own kernels ask whether gradients are on
            grad = torch.is_grad_enabled()
            with self._guard.unseen():
                ready = self._ask(self.follower.about_to_write, ready, args, kwargs)
                torch._C._set_grad_enabled(grad)
                out = func(*args, **kwargs)
                torch._C._set_grad_enabled(False)
                self._ask(self.follower.after, ready, args, kwargs, out)
            return out
        with self._guard.unseen():
            ready = self._ask(self.follower.about_to_write, ready, args, kwargs)
        out = private.run_foreign(func, args, kwargs)
        with self._guard.unseen():
            self._ask(self.follower.after, ready, args, kwargs, out)
        return out

    def _ask(self, act: Any, ready: Any, *rest: Any) -> Any:
        """What `act` gives; None, and a note, where it fails or something failed before."""
        try:
            return act(ready, *rest) if ready is not None else None
        except Exception as error:
            self._guard.fault(f"{ready.recipe.name} in float64", error)
            return None

    # -- the step

    def _opened(self, event: WindowOpened) -> None:
        """Between steps the next one is whole; before a backward its forward pass has been missed."""
        if self.number:
            return
        if self._steps.no_optimizer:
            self.following = self._by_hand = True
        elif not self._window.backward_since_step:
            self._begin()

    def _begin(self) -> None:
        self.following = True
        forks = Forks(self._what_if) if self._what_if is not None else None
        self._roles = Roles(self._what_if) if self._what_if is not None else None
        self._before = {}
        self.follower = Follower(self._guard, self._places.of, forks, self._scope, self._ranks)
        self.follower.sums_gradients = lambda: self._window.phase != FORWARD
        self._ranks.begins(self._window.step)
        self.budget = Budget(self.follower)
        self._places.clear()
        self._stepped = []

    def _backward_began(self, event: BackwardBegan) -> None:
        if self.following and event.accumulates:
            for root in event.roots:
                own = private.local(root)
                self.budget.loss(own)
                if self.follower.forks is not None and self.follower.forks.open:
                    self.follower.forks.loss(own, self._exact(own))

    def _step_began(self, event: StepBegan) -> None:
        if self.following:
            self.budget.gradients([(self._modules.name(p), p) for p in trained(event.optimizer)])
            self.follower.clear_stage()
            self._what_if_before(event.optimizer)

    def _exact(self, tensor: Tensor) -> Tensor:
        found = self.follower.main.of(tensor)
        return wide(tensor) if found is None else found

    def _what_if_before(self, optimizer: Any) -> None:
        """The forks end here; what lasts is kept as it is, to see what the step adds to it."""
        forks, roles = self.follower.forks, self._roles
        if forks is None or roles is None:
            return
        parameters = [private.local(p) for p in trained(optimizer)]
        gradients = [private.local(p.grad) for p in trained(optimizer) if p.grad is not None]
        if forks.open:
            forks.gradients([(gradient, self._exact(gradient)) for gradient in gradients])
            forks.close()
        for gradient in gradients:
            roles.add("gradient", DTYPE_NAMES[gradient.dtype], gradient, None, keeps=False)
        for tensor in (*parameters, *(held.tensor for held in state_tensors(optimizer))):
            if tensor.dtype in WIDE:
                self._before[id(tensor)] = private.local(tensor).detach().clone()

    def _what_if_after(self, optimizer: Any) -> None:
        roles = self._roles
        if roles is None:
            return
        for p in trained(optimizer):
            own = private.local(p)
            roles.add("master_weight", DTYPE_NAMES[own.dtype], own, self._before.pop(id(own), None), keeps=True)
        for held in state_tensors(optimizer):
            if held.tensor.dtype in WIDE and held.tensor.numel() > 1:
                own, before = private.local(held.tensor), self._before.pop(id(held.tensor), None)
                roles.add(f"optimizer_state {held.name}", DTYPE_NAMES[own.dtype], own, before, keeps=True)

    def _step_ended(self, event: StepEnded) -> None:
        """What the parameters moved by, and what the optimizer keeps from step to step."""
        if not self.following:
            return
        self._stepped.append(event.optimizer)
        self._what_if_after(event.optimizer)
        self.budget.updates([(self._modules.name(p), p) for p in trained(event.optimizer)])
        for held in state_tensors(event.optimizer):
            if held.tensor.dtype in WIDE and held.tensor.numel() > 1:
                owner = f"{self._modules.name(held.parameter)}: " if held.parameter is not None else ""
                self.budget.state(owner + held.name, held.tensor, held.parameter)
        self.follower.clear_stage()

    def _boundary(self, event: Boundary) -> None:
        """A step that a loss scaler skipped shows nothing of the optimizer: the next one is tried."""
        if self._by_hand:
            return
        if not self.following:
            if not self.number:
                self._begin()
        elif self._stepped:
            self._end()
        else:
            self._begin()

    def _give_up(self) -> None:
        """The window is over, and with it a step that has not ended: nothing of it is kept."""
        self.following = False
        self.follower.main.clear()
        self.follower.clear_stage()

    def _end(self) -> None:
        if self._scope.surveys:
            self._survey_ended()
            return
        self.following = False
        self.number = self._window.step
        self.follower.rows.settle()
        self.budget.finish()
        self.follower.main.clear()
        self.follower.clear_stage()

    def _survey_ended(self) -> None:
        """A step has shown which modules are worst, and what they take: the next one follows those that fit."""
        self.follower.rows.settle()
        parameters: dict[str, int] = {}
        for optimizer in self._stepped:
            for p in trained(optimizer):
                module = self._modules.name(p).rpartition(".")[0]
                parameters[module] = parameters.get(module, 0) + private.local(p).numel()
        self._scope.choose(self.follower.rows.by_key, parameters)
        self._begin()

    # -- a loop without an Optimizer: its step ends where the next forward pass begins

    def _ready(self, event: GradientsReady) -> None:
        """Its gradients, as long as no further backward adds to them."""
        if self._by_hand and self._held is not None and event.optimizer is self._steps.hand_written:
            self._held = event.leaves
            self.budget.again()
            self.budget.gradients([(self._modules.name(leaf), leaf) for leaf in event.leaves])
            self.follower.clear_stage()

    def _next_begins(self, args: Any) -> bool:
        """Whether this op is the first of the forward pass after a step by hand."""
        after = self._window.phase == GRADIENTS and torch.is_grad_enabled()
        return after and self._window.with_gradients(args) == FORWARD

    def _turns(self) -> None:
        """A forward pass begins after a step by hand: the exact step ends here, or begins."""
        with self._guard.unseen():
            if self._held is None:
                self._held = []
                self._begin()
            elif self._held:
                self.budget.updates([(self._modules.name(leaf), leaf) for leaf in self._held])
                self._held = []
                self._by_hand = False
                self._end()

    # -- what is told

    def _facts_told(self, event: FactsTold) -> None:
        """Gives the watchers' observations what was measured of them."""
        if self.number:
            add_exact(event.told, self.budget.lines, self.follower.rows.by_key)

    def notes(self) -> list[str]:
        """What to say of it in the report."""
        if self.number and self._scope.globs and not self.follower.elements:
            ran = ", ".join(sorted(filter(None, self._scope.met_names()))[:5])
            return [f"--exact-module {' '.join(self._scope.globs)}: no such module ran; there are {ran}"]
        if not self._asked or self.number:
            return []
        return [
            "--exact: no step was followed from its forward pass to its end; let it take more steps, or say --steps 3"
        ]

    def content(self, rank: int) -> dict[str, Any] | None:
        """The exact step as plain values; None where there was none."""
        if not self.number:
            return None
        follower = self.follower
        total = follower.elements
        return {
            "step": self.number,
            "rank": rank,
            "followed": 1.0 - follower.elements_lost / total if total else 1.0,
            "not_followed": dict(follower.lost.most_common()),
            "budget": [line._asdict() for line in self.budget.lines],
            "scope": self._scope.content(),
            "companions": 8 * (follower.main.most + follower.stage.most),
            "operations": self._operations(),
            "what_if": self._what_if_content(),
        }

    def _what_if_content(self) -> dict[str, Any] | None:
        if self.follower.forks is None or self._roles is None:
            return None
        return {**self.follower.forks.content(), "roles": self._roles.content()}

    def _operations(self) -> list[dict[str, Any]]:
        """The operations that added most to the error, worst first."""
        rows = sorted(self.follower.rows.by_key.items(), key=lambda pair: -pair[1].added)
        return [
            {
                "path": key.site.path if key.site else None,
                "line": key.site.line if key.site else None,
                "module": key.module,
                "operation": key.operation,
                "dtype": key.dtype,
                "phase": key.phase,
                "times": row.times,
                "local": row.local,
                "error": row.distance,
                "amplification": row.amplification or None,
                "added": row.added,
            }
            for key, row in rows[:MOST]
            if row.added > 0
        ]
