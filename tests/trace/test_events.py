"""The bus and the guard: who hears what, and that nothing of the program's own is changed or swallowed on the way."""

from __future__ import annotations

import gc
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import harness
import pytest
import torch
from test_oracle import loss_of, small, traced
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from precaudit.runtime import session
from precaudit.runtime.events import Bus
from precaudit.runtime.guard import Guard
from precaudit.runtime.modes import Modes


class Rang(NamedTuple):
    times: int


@pytest.fixture
def guard() -> Guard:
    made = Guard(Modes())
    made.open = True
    return made


def test_listeners_hear_in_the_order_in_which_they_asked_though_one_fails(guard: Guard) -> None:
    bus, heard = Bus(guard), []

    def fails(event: Rang) -> None:
        raise ValueError("of ours")

    bus.on(Rang, lambda event: heard.append(("first", event.times)))
    bus.on(Rang, fails)
    bus.on(Rang, lambda event: heard.append(("last", event.times)))
    bus.tell(Rang(3))
    assert heard == [("first", 3), ("last", 3)]
    assert [note.partition("please report this: ")[2] for note in guard.notes] == ["ValueError: of ours"]


def test_nobody_hears_after_a_listener_has_ended_the_trace(guard: Guard) -> None:
    bus, heard = Bus(guard), []

    def ends(event: Rang) -> None:
        guard.open = False

    bus.on(Rang, ends)
    bus.on(Rang, heard.append)
    bus.tell(Rang(1))
    bus.tell(Rang(2))
    assert heard == []


class Late(Exception):
    """What the program's own time limit raises."""


def _by_name(number: int, frame: FrameType | None) -> None:
    raise Late


def _through_another(*given: Any) -> None:
    _by_name(*given)


def _as_a_builtin(*given: Any) -> None:
    raise TimeoutError


@pytest.mark.parametrize("handler", [_by_name, _through_another, _as_a_builtin], ids=lambda h: h.__name__)
def test_what_the_programs_signal_handler_raises_passes_the_guard(guard: Guard, handler: Callable[..., None]) -> None:
    old = signal.signal(signal.SIGALRM, handler)
    gc.disable()  # Python drops what is raised in a callback of the collector; hypothesis has one
    try:
        for act in (lambda: time.sleep(1), lambda: [torch.ones(8).sum() for _ in range(100_000)]):
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            with pytest.raises((Late, TimeoutError)):
                guard("a test", act)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
        gc.enable()
    assert guard.notes == {}


def test_a_training_loop_with_a_time_limit_gets_every_one_of_its_exceptions() -> None:
    fired = caught = 0

    def alarm(number: int, frame: FrameType | None) -> None:
        nonlocal fired
        fired += 1
        raise Late

    def train() -> None:
        nonlocal caught
        chance = random.Random(0)
        model = small()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        loss_of(model, torch.ones(4, 6)).backward()
        optimizer.step()  # torch's own first imports swallow exceptions
        for _ in range(20):
            try:
                signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.0005, 0.02))
                due = time.monotonic() + 5
                while time.monotonic() < due:
                    loss_of(model, torch.ones(4, 6)).backward()
                    optimizer.step()
                    optimizer.zero_grad()
            except Late:
                caught += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)

    old = signal.signal(signal.SIGALRM, alarm)
    gc.disable()
    try:
        traced(train, steps=100_000, attempts=100_000)
    finally:
        gc.enable()
        signal.signal(signal.SIGALRM, old)
    assert caught == fired == 20


def test_steps_are_seen_after_one_whose_closure_raised() -> None:
    def train() -> None:
        model = small(torch.bfloat16)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)

        def closure(step: int) -> torch.Tensor:
            optimizer.zero_grad()
            loss = loss_of(model, torch.randn(4, 6))
            loss.backward()
            if step in (0, 4):
                raise Late
            return loss

        for step in range(10):
            try:
                optimizer.step(lambda step=step: closure(step))
            except Late:
                continue

    report = traced(train, steps=6)
    assert report.coverage.steps == 6
    assert {"PA101", "PA301"} <= {finding.rule for finding in report.findings}


@pytest.fixture
def steps_heard() -> Iterator[list[str]]:
    """What a user's own global hooks, registered before and after ours, are called with."""
    heard: list[str] = []

    def before(optimizer: Any, args: Any, kwargs: Any) -> None:
        heard.append("before")

    def after(optimizer: Any, args: Any, kwargs: Any) -> None:
        heard.append("after")

    hooks = [register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)]
    yield heard
    for hook in hooks:
        hook.remove()


def test_a_users_global_step_hooks_are_called_at_every_step_past_the_windows_end(steps_heard: list[str]) -> None:
    later: list[str] = []

    def train() -> None:
        hook = register_optimizer_step_post_hook(lambda *_: later.append("after"))
        model = small()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(6):
            loss_of(model, torch.randn(4, 6)).backward()
            optimizer.step()
        hook.remove()

    report = traced(train, skip=1, steps=2)
    assert report.coverage.steps == 2
    assert steps_heard == ["before", "after"] * 6
    assert later == ["after"] * 6


ORDER = Path(__file__).parent.parent / "data" / "listeners.txt"


def test_listeners_hear_each_event_in_the_order_that_is_written_down() -> None:
    """session.py makes trackers before those who ask them; the file shows what that comes to."""
    begun = session.start(harness.SETTINGS)
    begun.remove()
    heard = begun.bus.order()
    lines = [f"{event}: {' '.join(name.partition('.')[0] for name in acts)}" for event, acts in sorted(heard.items())]
    assert lines == ORDER.read_text().splitlines()
