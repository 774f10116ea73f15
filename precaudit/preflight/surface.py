"""torch.cuda and torch.accelerator as data: what each name answers where a preflight stands in for the device."""

from __future__ import annotations

import importlib
import time
import types
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

from .assumed import Assumed
from .devices import Device
from .patches import Patches
from .placement import Current


class Stream:
    """A stream on which all work is done already."""

    def __init__(self, device: Any = None, priority: int = 0, **kwargs: Any) -> None:
        index = device.index if isinstance(device, torch.device) else device
        self.device = torch.device("cuda", index or 0)
        self.device_index, self.device_type = index or 0, 1
        self.stream_id = self.cuda_stream = 0
        self.priority = priority

    def wait_stream(self, stream: Any) -> None:
        """Nothing is left to wait for."""

    def wait_event(self, event: Any) -> None:
        """Nothing is left to wait for."""

    def synchronize(self) -> None:
        """Nothing is left to wait for."""

    def record_event(self, event: Any = None) -> Any:
        """An event at this moment."""
        event = event or Event(enable_timing=True)
        event.record(self)
        return event

    def query(self) -> bool:
        """All work is done."""
        return True

    def is_capturing(self) -> bool:
        """No graph is recorded: what one captures runs."""
        return False

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *raised: Any) -> None:
        pass

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream)

    def __hash__(self) -> int:
        return 0


class Event:
    """A moment of this process's own clock."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False, **kwargs: Any):
        self.at = 0.0

    def record(self, stream: Any = None) -> None:
        """Now."""
        self.at = time.perf_counter()

    def wait(self, stream: Any = None) -> None:
        """It has come already."""

    def query(self) -> bool:
        """It has come already."""
        return True

    def synchronize(self) -> None:
        """It has come already."""

    def elapsed_time(self, end: Any) -> float:
        """Milliseconds, of the CPU."""
        return max((float(end.at) - self.at) * 1e3, 1e-3)


class Nothing:
    """A context that does nothing, and a decorator that changes nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __enter__(self) -> Nothing:
        return self

    def __exit__(self, *raised: Any) -> None:
        pass

    def __call__(self, function: Any) -> Any:
        return function


def properties(device: Device) -> Any:
    """What `torch.cuda.get_device_properties` gives."""
    return types.SimpleNamespace(
        name=device.name,
        major=device.major,
        minor=device.minor,
        total_memory=device.memory,
        multi_processor_count=device.processors,
        gcnArchName=device.architecture,
        warp_size=64 if device.architecture else 32,
        is_integrated=False,
        is_multi_gpu_board=False,
        max_threads_per_multi_processor=2048,
        regs_per_multiprocessor=65536,
        shared_memory_per_block=49152,
        shared_memory_per_block_optin=232448,
        shared_memory_per_multiprocessor=233472,
        L2_cache_size=50 << 20,
        uuid="0",
        pci_bus_id=0,
    )


NOTHING = (
    "synchronize empty_cache manual_seed manual_seed_all seed seed_all init ipc_collect set_stream check_error _sleep "
    "reset_peak_memory_stats reset_max_memory_allocated reset_max_memory_cached reset_accumulated_memory_stats "
    "set_per_process_memory_fraction set_sync_debug_mode _lazy_init _check_capability"
).split()
"""Names of torch.cuda that have nothing to do."""
MEMORY = (
    "memory_allocated max_memory_allocated memory_reserved max_memory_reserved memory_cached max_memory_cached"
).split()
"""Names of torch.cuda that say how much memory is in use: 0, and said to be assumed."""
NCCL = (2, 27, 5)
"""What torch.cuda.nccl.version says."""
CONTEXTS = ("stream", "StreamContext", "device_of")
"""Names of torch.cuda that are entered."""
ACCELERATOR = {
    "set_device_index",
    "set_device_idx",
    "set_stream",
    "synchronize",
    "empty_cache",
    "reset_peak_memory_stats",
}
"""Names of torch.accelerator that have nothing to do."""


def answers(device: Device, current: Current, heard: Callable[[], bool]) -> dict[str, Any]:
    """Name of torch.cuda -> what stands there; `heard` says whether an asker is to hear that there is no device."""
    random = torch.random

    def bfloat16(including_emulation: bool = True) -> bool:
        return including_emulation or device.bfloat16

    return {
        "is_available": lambda: not heard(),
        "is_initialized": lambda: True,
        "device_count": lambda: 0 if heard() else current.count,
        "current_device": lambda: current.index,
        "is_bf16_supported": bfloat16,
        "is_tf32_supported": lambda: device.tf32,
        "get_device_capability": lambda index=None: (device.major, device.minor),
        "get_device_name": lambda index=None: device.name,
        "get_device_properties": lambda index=None: properties(device),
        "get_arch_list": lambda: [device.architecture or f"sm_{device.major}{device.minor}"],
        "mem_get_info": lambda index=None: (device.memory, device.memory),
        "memory_stats": lambda index=None: defaultdict(int),
        "memory_summary": lambda *args, **kwargs: "",
        "memory_snapshot": lambda *args, **kwargs: [],
        "current_stream": lambda index=None: Stream(current.index),
        "default_stream": lambda index=None: Stream(current.index),
        "is_current_stream_capturing": lambda: False,
        "can_device_access_peer": lambda one, other: True,
        "utilization": lambda index=None: 0,
        "initial_seed": torch.initial_seed,
        "get_rng_state": lambda index=None: random.get_rng_state(),
        "get_rng_state_all": lambda: [random.get_rng_state()],
        "set_rng_state": lambda state, index=None: random.set_rng_state(state),
        "set_rng_state_all": lambda states: random.set_rng_state(states[0]),
        "default_generators": (torch.default_generator,),
        "_lazy_call": lambda call, **kwargs: None,
        "Stream": Stream,
        "ExternalStream": Stream,
        "Event": Event,
    }


def install(patches: Patches, device: Device, current: Current, assumed: Assumed, heard: Callable[[], bool]) -> None:
    """Puts all answers in."""
    cuda = torch.cuda
    for name, value in answers(device, current, heard).items():
        patches.set(cuda, name, value)
    for name in NOTHING:
        patches.set(cuda, name, lambda *args, **kwargs: None)
    for name in CONTEXTS:
        patches.set(cuda, name, type(name, (Nothing,), {}))
    for name in MEMORY:
        patches.set(cuda, name, _unknown(f"torch.cuda.{name}: 0", assumed))
    _current_device(patches, current)
    _graphs(patches, assumed)
    for name in ("range_push", "range_pop", "mark", "range_start", "range_end"):
        patches.set(cuda.nvtx, name, lambda *args, **kwargs: 0)
    patches.set(cuda.nvtx, "range", Nothing)
    patches.set(cuda.memory, "_record_memory_history", lambda *args, **kwargs: None)
    patches.set(cuda.memory, "_dump_snapshot", lambda *args, **kwargs: None)
    nccl = importlib.import_module("torch.cuda.nccl")
    patches.set(nccl, "version", lambda: NCCL)
    patches.set(nccl, "is_available", lambda *args: True)
    patches.set(torch.backends.cudnn, "is_acceptable", lambda tensor: False)
    _accelerator(patches, current, heard)


def _unknown(what: str, assumed: Assumed) -> Callable[..., int]:
    def answer(*args: Any, **kwargs: Any) -> int:
        assumed.note(what)
        return 0

    return answer


def _current_device(patches: Patches, current: Current) -> None:
    """`set_device` and `with torch.cuda.device(1)`."""

    def exchange(index: int) -> int:
        before, current.index = current.index, index if index >= 0 else current.index
        return before

    def choose(device: Any) -> None:
        if device is not None and not (isinstance(device, int) and device < 0):
            current.index = current.full(device).index

    patches.set(torch.cuda, "set_device", choose)
    patches.set(torch.cuda, "_exchange_device", exchange)
    patches.set(torch.cuda, "_maybe_exchange_device", exchange)


def _graphs(patches: Patches, assumed: Assumed) -> None:
    """A graph's body runs once, as it is captured; what replays would do is not seen."""

    class CUDAGraph:
        """What `replay` would run ran once."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            pass

        def replay(self) -> None:
            """Runs nothing, and has that said."""
            assumed.note("a CUDA graph was replayed: its operations ran once, when it was captured")

        def pool(self) -> tuple[int, int]:
            """A handle for `pool=`."""
            return 0, 0

        def __getattr__(self, name: str) -> Any:
            return lambda *args, **kwargs: None

    graphs = importlib.import_module("torch.cuda.graphs")
    for owner in (torch.cuda, graphs):
        patches.set(owner, "CUDAGraph", CUDAGraph)
        patches.set(owner, "graph", type("graph", (Nothing,), {}))
    patches.set(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    patches.set(torch.cuda, "make_graphed_callables", lambda callables, *args, **kwargs: callables)


def _accelerator(patches: Patches, current: Current, heard: Callable[[], bool]) -> None:
    accelerator = torch.accelerator
    for name, value in {
        "is_available": lambda: not heard(),
        "device_count": lambda: 0 if heard() else current.count,
        "current_accelerator": lambda check_available=False: None if heard() else torch.device("cuda"),
        "current_device_index": lambda: current.index,
        "current_device_idx": lambda: current.index,
        "current_stream": lambda device=None: Stream(current.index),
        **{name: lambda *args, **kwargs: None for name in ACCELERATOR},
        **{name: lambda *args, **kwargs: 0 for name in MEMORY if "cached" not in name},
    }.items():
        patches.set(accelerator, name, value)
