"""What one process saw, as the file that is merged with the other ranks'."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any

import torch

from ...model.vocabulary import Kind, Role
from ..events import BackwardEnded, GoesOn, MayEndNow
from ..trackers.optimizers import parameters
from .ledger import Observation

if TYPE_CHECKING:
    from ..session import Session

FORMAT = 1
SELDOM = 5.0
"""Seconds between two files where nothing but the number of steps changes."""

NAMED = (
    "torch", "numpy", "transformers", "accelerate", "deepspeed", "lightning", "pytorch_lightning", "peft", "trl",
    "bitsandbytes", "torchao", "triton",
)  # fmt: skip
"""Packages whose versions a report names."""


class RankFile:
    """The facts and the coverage of a session, written anew at each step."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._final: dict[str, Any] | None = None
        self._path = ""
        self._written = 0.0
        """When the file was last written."""
        session.bus.on(BackwardEnded, self._backward_ended)
        session.bus.on(GoesOn, lambda event: self._goes_on(), always=True)
        session.bus.on(MayEndNow, lambda event: self.write(), always=True)

    def _backward_ended(self, event: BackwardEnded) -> None:
        """Before the first step there are no boundaries."""
        window = self.session.window
        if self.session.steps.trains and not window.attempts and window.micro_batches <= 64:
            self.write()

    def _goes_on(self) -> None:
        """Each step that was looked at is in the file before the next begins; the number of others, now and then."""
        if not self.session.bus.rests or time.monotonic() - self._written > SELDOM:
            with self.session.guard.unseen():
                self.write()

    def freeze(self) -> None:
        """Keeps what is known now: the window has closed."""
        self._final = self.content()

    def stopped(self) -> None:
        """Says that the run was ended here, and which ranks it was ended without."""
        self._final = {**self.content(), "status": self.session.status, "without": sorted(self.session.peers.without)}
        self.write()

    def facts(self) -> list[Observation]:
        """Everything confirmed so far, accumulators and hand-updated weights included."""
        out = [seen for seen in self.session.ledger.observations.values() if seen.confirmed]
        out += [told for watcher in self.session.watchers for told in watcher.observations()]
        for watcher in self.session.watchers:
            watcher.complete(out)
        out += self.session.adapters.observations()
        return out + self.session.adapters.dishonoured(out)

    def content(self) -> dict[str, Any]:
        """What this process saw, as the plain values of a RankFile."""
        if self._final is not None:
            return self._final
        session = self.session
        facts = [seen.fact().as_json() for seen in self.facts()]  # first: what fails meanwhile is among the notes
        rank, world = session.peers.me.rank, session.peers.me.world_size
        if rank < 0:  # no process group: what the launcher says
            rank = int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) or 0)
            world = int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "1")) or 1)
        optimizers = session.steps.optimizers()
        names = sorted({type(optimizer).__name__ for optimizer in optimizers})
        by_hand = session.steps.hand_written in session.steps.stepped
        devices = session.steps.devices()
        seen_ops = session.flow.ops
        met = [adapter.title for adapter in session.adapters.met]
        return {
            "format": FORMAT,
            "rank": rank,
            "world_size": world,
            "pid": os.getpid(),
            "status": session.status,
            "steps": self._steps(),
            "coverage": {
                "steps": self._steps(),
                "attempts": session.window.attempts,
                "skipped_steps": session.window.skipped,
                "micro_batches": session.window.micro_batches_inside,
                "traced_steps": sorted(session.steps.traced),
                "ranks": 1,
                "unattributed_ops": round(session.flow.unattributed / seen_ops, 4) if seen_ops else 0.0,
                "compiled": session.compiled.coverage(seen_ops),
                "parameters": sum(len(parameters(optimizer)) for optimizer in optimizers),
                "notes": [*session.guard.notes, *session.long_steps.notes(), *session.passes.notes()],
                "not_observed": self._why_not(),
                "overhead": session.window.overhead(),
                "setup": {
                    "torch": torch.__version__,
                    "device": ", ".join(devices),
                    "autocast": session.autocast.setup(),
                    "optimizer": ", ".join(names) or ("hand-written update" if by_hand else "none"),
                    **({"frameworks": ", ".join(met)} if met else {}),
                },
            },
            "facts": facts,
            "exact": session.exact.content(rank),
            "python": sys.version.split()[0],
            "versions": _versions(),
        }

    def _why_not(self) -> dict[str, str]:
        """Roles that were not observed for a reason better than that nothing of the kind ran."""
        seen = self.session.ledger.observations.values()
        rows = {each.role for each in seen if each.kind is Kind.HOLDS and each.confirmed}
        reasons = {}
        if Role.MASTER_WEIGHT not in rows and Role.ADAPTER_PARAMETER in rows:
            reasons[Role.MASTER_WEIGHT.value] = "only adapters are trained"
        if Role.FORWARD_WEIGHT not in rows and self.session.compiled.ran_in_window:
            reasons[Role.FORWARD_WEIGHT.value] = "compiled regions do not tell how they read weights; --eager does"
        return reasons

    def _steps(self) -> int:
        """Steps taken while every op was seen."""
        return sum(self.session.steps.traced.values())

    def write(self) -> None:
        """Renews this rank's file, atomically: what was seen survives any end of the process."""
        folder = self.session.settings.ranks_folder
        if not folder or not (
            self.session.window.micro_batches or self.session.passes.dropped or self.session.ledger.observations
        ):
            return
        content = self.content()
        path = os.path.join(folder, f"rank-{content['rank']}-{os.getpid()}.json")
        try:
            if self._path not in ("", path):  # its rank was not known until now
                os.unlink(self._path)
            self._path = path
            with open(path + ".new", "w", encoding="utf-8") as file:
                json.dump(content, file)
            os.replace(path + ".new", path)
            self._written = time.monotonic()
        except OSError as error:
            self.session.guard.fault("writing the rank file", error)


def _versions() -> dict[str, str]:
    """The versions of torch and of the frameworks that this process has loaded."""
    named = {name: getattr(sys.modules.get(name), "__version__", None) for name in NAMED}
    return {name: str(version) for name, version in named.items() if version is not None}
