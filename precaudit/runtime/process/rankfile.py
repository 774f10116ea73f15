"""What one process saw, as the file that is merged with the other ranks'."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable
from typing import Any

import torch

from ...model.vocabulary import Kind, Role, Site
from ..events import BackwardEnded, Bus, FactsAsked, FactsTold, GoesOn, MayEndNow
from ..exact.step import ExactStep
from ..guard import Guard
from ..settings import Settings
from ..trackers.autocast import Autocast
from ..trackers.claims import Account
from ..trackers.compiled import Compiled
from ..trackers.exponents import Exponents
from ..trackers.inventory import Inventory
from ..trackers.late import Late
from ..trackers.lineage import Flow
from ..trackers.long_steps import LongSteps
from ..trackers.modules import Modules
from ..trackers.optimizers import parameters
from ..trackers.passes import Passes
from ..trackers.steps import Steps
from ..trackers.timeline import Timeline
from ..trackers.window import Window
from .ledger import Ledger, Observation
from .peers import Peers

FORMAT = 1
ROOM = 512
"""Bytes for a word on what could not be written."""
SELDOM = 5.0
"""Seconds between two files where nothing but the number of steps changes."""

NAMED = (
    "torch", "numpy", "transformers", "accelerate", "deepspeed", "lightning", "pytorch_lightning", "peft", "trl",
    "bitsandbytes", "torchao", "triton",
)  # fmt: skip
"""Packages whose versions a report names."""


class RankFile:
    """The facts and the coverage of one process, written anew at each step."""

    def __init__(
        self,
        bus: Bus,
        guard: Guard,
        settings: Settings,
        ledger: Ledger,
        peers: Peers,
        account: Account,
        window: Window,
        steps: Steps,
        flow: Flow,
        autocast: Autocast,
        compiled: Compiled,
        long_steps: LongSteps,
        passes: Passes,
        exact: ExactStep,
        inventory: Inventory,
        late: Late,
        modules: Modules,
        exponents: Exponents,
        timeline: Timeline,
    ) -> None:
        self._bus, self._guard, self._folder, self._ledger = bus, guard, settings.ranks_folder, ledger
        self._preflight = settings.preflight
        self._peers, self._account, self._window, self._steps = peers, account, window, steps
        self._flow, self._autocast, self._compiled = flow, autocast, compiled
        self._long_steps, self._passes, self._exact, self._inventory = long_steps, passes, exact, inventory
        self._late, self._modules = late, modules
        self._exponents, self._timeline = exponents, timeline
        self._status = "watching"
        self._final: dict[str, Any] | None = None
        self._path = ""
        self._written = 0.0
        """When the file was last written."""
        self._room = ""
        """The file in which a loss can be told."""
        self._kept = 0
        """Optimizer steps that the file knows of."""
        self._lost = False
        """What was seen last is not on disk."""
        bus.on(BackwardEnded, self._backward_ended)
        bus.on(GoesOn, lambda event: self._goes_on(), always=True)
        bus.on(MayEndNow, lambda event: self.write(), always=True)

    def _backward_ended(self, event: BackwardEnded) -> None:
        """Before the first step there are no boundaries."""
        if self._steps.trains and not self._window.attempts and self._window.micro_batches <= 64:
            self.write()

    def _goes_on(self) -> None:
        """Each step that was looked at is in the file before the next begins; the number of others, now and then."""
        if self._late.on:  # between windows it is renewed by what happens
            return
        if not self._bus.rests or time.monotonic() - self._written > SELDOM:
            with self._guard.unseen():
                self.write()

    def window_over(self) -> None:
        """Writes what a window saw; the run is watched on."""
        self._status = "finished"
        self.write()

    def freeze(self) -> None:
        """Keeps what is known now: the window has closed."""
        self._status = "finished"
        self._final = self.content()

    def stopped(self) -> None:
        """Says that the run was ended here, and which ranks it was ended without."""
        self._status = "stopped"
        self._final = {**self.content(), "status": self._status, "without": sorted(self._peers.without)}
        self.write()

    def facts(self) -> list[Observation]:
        """Everything confirmed so far, and what is only said when it is asked for: accumulators, settings."""
        told = [seen for seen in self._ledger.observations.values() if seen.confirmed]
        self._bus.tell(FactsAsked(told))
        self._bus.tell(FactsTold(told))
        return told

    def content(self) -> dict[str, Any]:
        """What this process saw, as the plain values of a RankFile."""
        if self._final is not None:
            return self._final
        rank, world = self._peers.me.rank, self._peers.me.world_size
        if rank < 0:  # no process group: what the launcher says
            rank = int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) or 0)
            world = int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "1")) or 1)
        ask = self._guard.ask
        seen: list[Observation] = ask("the observations", self.facts, otherwise=[])
        told = [ask("an observation", _as_json, each, otherwise=None) for each in seen]
        return {
            "format": FORMAT,
            "rank": rank,
            "world_size": world,
            "pid": os.getpid(),
            "status": self._status,
            "steps": ask("the steps", self._traced_steps, otherwise=0),
            "facts": [fact for fact in told if fact is not None],
            "exact": ask("the exact step", self._exact.content, rank, otherwise=None),
            "picture": ask("the picture", self._picture, rank, otherwise=None),
            "inventory": ask("the inventory", self._inventory.rows, otherwise=[]),
            "preflight": ask("the preflight", self._preflight, otherwise=None) if self._preflight is not None else None,
            "python": sys.version.split()[0],
            "versions": ask("the versions", _versions, otherwise={}),
            "gpu": ask("the device's name", _gpu, otherwise="") if self._preflight is None else "",
            "model": ", ".join(self._inventory.models),
            "parameters": sum(self._inventory.models.values()),
            # Last: what failed in the others is among its notes.
            "coverage": ask("what was looked at", self._coverage, otherwise={}) or {"notes": [*self._guard.notes]},
        }

    def _coverage(self) -> dict[str, Any]:
        """What was looked at, and what could not be seen."""
        window, seen_ops, ask = self._window, self._flow.ops, self._guard.ask
        optimizers = self._steps.optimizers()
        notes: list[str] = []
        for part in (self._ledger, self._long_steps, self._passes, self._exact):
            told: Iterable[str] = ask(f"notes of {type(part).__name__}", part.notes, otherwise=())
            notes += told
        notes += ask("optimizers that never stepped", lambda: [*self._late.notes(self._never_stepped())], otherwise=[])
        coverage = {
            "steps": self._traced_steps(),
            "attempts": window.attempts,
            "skipped_steps": window.skipped,
            "micro_batches": window.micro_batches_inside,
            "traced_steps": sorted(self._steps.traced),
            "ranks": 1,
            "unattributed_ops": round(self._flow.unattributed / seen_ops, 4) if seen_ops else 0.0,
            "compiled": ask("compiled regions", self._compiled.coverage, seen_ops, otherwise={}),
            "parameters": ask("parameters", _count, optimizers, otherwise=0),
            "not_observed": ask("the roles not seen", self._why_not, otherwise={}),
            "overhead": ask("what the trace costs", window.overhead, otherwise={}),
            "setup": ask("the setup", self._setup, optimizers, otherwise={}),
        }
        return {**coverage, "notes": [*self._guard.notes, *notes]}

    def _picture(self, rank: int) -> dict[str, Any]:
        """What a page draws of a step: sizes of values, and when what was done."""
        return {
            "rank": rank,
            "histograms": self._exponents.rows(),
            "loss_scale": self._exponents.loss_scale,
            "timeline": self._timeline.content(),
        }

    def _never_stepped(self) -> list[tuple[Any, Site | None]]:
        """The optimizers that exist and did not step, with the lines that made them; asked once a window is over."""
        waiting = self._steps.waiting() if self._status != "watching" else []
        return [(optimizer, self._modules.built_at.get(optimizer)) for optimizer in waiting]

    def _setup(self, optimizers: list[Any]) -> dict[str, str]:
        names = sorted({type(optimizer).__name__ for optimizer in optimizers})
        by_hand = self._steps.hand_written in self._steps.stepped
        frameworks = self._account.titles()
        return {
            "torch": torch.__version__,
            "device": ", ".join(self._steps.devices()),
            "autocast": self._autocast.setup(),
            "optimizer": ", ".join(names) or ("hand-written update" if by_hand else "none"),
            **({"frameworks": ", ".join(frameworks)} if frameworks else {}),
        }

    def _why_not(self) -> dict[str, str]:
        """Roles that were not observed for a reason better than that nothing of the kind ran."""
        seen = self._ledger.observations.values()
        rows = {each.role for each in seen if each.kind is Kind.HOLDS and each.confirmed}
        reasons = {}
        if Role.MASTER_WEIGHT not in rows and Role.ADAPTER_PARAMETER in rows:
            reasons[Role.MASTER_WEIGHT.value] = "only adapters are trained"
        if Role.FORWARD_WEIGHT not in rows and self._compiled.ran_in_window:
            reasons[Role.FORWARD_WEIGHT.value] = "compiled regions do not tell how they read weights; --eager does"
        return reasons

    def _traced_steps(self) -> int:
        """Steps taken while every op was seen."""
        return sum(self._steps.traced.values())

    def write(self) -> None:
        """Renews this rank's file, atomically: what was seen survives any end of the process."""
        folder = self._folder
        if not folder or not (self._window.micro_batches or self._passes.dropped or self._ledger.observations):
            return
        content = self.content()
        path = os.path.join(folder, f"rank-{content['rank']}-{os.getpid()}.json")
        try:
            if not os.path.isdir(folder):  # a cleaner came by
                os.makedirs(folder)
                self._room = ""
            if self._path not in ("", path):  # its rank was not known until now
                os.unlink(self._path)
            self._path = path
            self._make_room(os.path.join(folder, f"lost-{os.getpid()}"))
            with open(path + ".new", "w", encoding="utf-8") as file:
                json.dump(content, file)
            os.replace(path + ".new", path)
            self._written, self._kept = time.monotonic(), content["coverage"]["attempts"]
        except OSError as error:
            self._guard.fault("writing the rank file", error)
            self._tell_loss(f"{content['rank']} {self._kept} {error.strerror}")
            self._lost = True
        else:
            if self._lost:
                self._tell_loss("")
                self._lost = False

    def _make_room(self, path: str) -> None:
        """Makes the file in which a loss can still be told when the disk has no room for a new one."""
        if not self._room:
            with open(path, "wb") as file:
                file.write(b" " * ROOM)
            self._room = path

    def _tell_loss(self, text: str) -> None:
        """Writes over the room that was made: what could not be written, and why; "" where all is written again."""
        try:
            with open(self._room, "r+b") as file:
                file.write(text.encode("utf-8", "replace")[:ROOM].ljust(ROOM))
        except OSError:
            pass  # the launcher finds the folder as it is


def _as_json(seen: Observation) -> dict[str, Any]:
    return seen.fact().as_json()


def _count(optimizers: list[Any]) -> int:
    return sum(len(parameters(optimizer)) for optimizer in optimizers)


def _gpu() -> str:
    """The name of the device that this process has used, as torch.cuda gives it; empty where it has used none."""
    return str(torch.cuda.get_device_name()) if torch.cuda.is_initialized() else ""


def _versions() -> dict[str, str]:
    """The versions of torch and of the frameworks that this process has loaded."""
    named = {name: getattr(sys.modules.get(name), "__version__", None) for name in NAMED}
    return {name: str(version) for name, version in named.items() if version is not None}
