"""Tells when this process joins others: wraps `init_process_group`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from .. import torch_private as private
from ..events import Bus, GroupBegan, GroupJoined
from ..guard import Guard
from ..patching import Undo
from . import Tap


class ProcessGroupTap(Tap):
    """The first group is the one that counts; `new_group` makes parts of it."""

    def __init__(self, bus: Bus, guard: Guard) -> None:
        self._bus, self._guard = bus, guard

    def install(self) -> Iterable[Undo]:
        yield private.patch_init_process_group(self._around)

    def _around(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def init_process_group(*args: Any, **kwargs: Any) -> Any:
            self._bus.tell(GroupBegan())
            result = original(*args, **kwargs)
            self._guard("the process group", self._joined)
            return result

        return init_process_group

    def _joined(self) -> None:
        distributed = torch.distributed
        self._bus.tell(GroupJoined(distributed.get_rank(), distributed.get_world_size(), private.rendezvous()))
