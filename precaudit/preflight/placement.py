"""Which tensors are on the device: CPU tensors with a mark on their storage, put there where they are made or moved.

A CPU build of torch dispatches `torch.zeros(3, device="cuda")` to the kernel of the key CUDA, and has none: ours makes
a CPU tensor and marks its storage with the index of the device. Results of marked tensors are marked by a dispatch
mode; `tensor.device` and its like answer by the mark. All arithmetic is the CPU's.

Known limitations: tensors that C++ allocates by itself (the buckets of DistributedDataParallel) are on the CPU until an
operation has a marked one among its arguments; that CPU and device tensors meet in one operation is not an error here.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..runtime import torch_private
from .assumed import Assumed
from .patches import Patches

FunctionMode: Any = torch.overrides.TorchFunctionMode
DispatchMode: Any = importlib.import_module("torch.utils._python_dispatch").TorchDispatchMode
CPU = torch.device("cpu")
LOW = (torch.float16, torch.bfloat16)
MARK = "_precaudit_device"
"""The attribute of a storage that holds the index of its device; a storage keeps its Python object while it lives."""

Kernel = Callable[[Any, Any, Any], Any]
"""What runs an operation: of it, its arguments and its keywords."""

ITEM = torch.ops.aten._local_scalar_dense.default
real_device = torch._C.TensorBase.device.__get__


def index_of(tensor: Tensor) -> int | None:
    """The index of the device that this tensor is on; None for a CPU tensor."""
    tensor = getattr(tensor, "_local_tensor", tensor)  # a DTensor has no storage of its own
    try:
        index: int | None = getattr(tensor.untyped_storage(), MARK, None)
    except (RuntimeError, NotImplementedError):  # sparse and other layouts
        return None
    return index


def mark(tensor: Tensor, index: int | None) -> Tensor:
    """Puts a tensor on the device; None puts it on the CPU."""
    if index is not None:
        with contextlib.suppress(RuntimeError, NotImplementedError):
            setattr(tensor.untyped_storage(), MARK, index)
    return tensor


def on_device(device: Any) -> bool:
    """Whether a device, however it is spelled, is one of CUDA's: "cuda", 0, torch.device("cuda:1")."""
    if isinstance(device, int) and not isinstance(device, bool):
        return True
    if isinstance(device, torch.device):
        return str(device.type) == "cuda"
    return isinstance(device, str) and device.partition(":")[0] == "cuda"


@functools.cache
def is_view(func: Any) -> bool:
    """Whether an operation of torch gives views of its arguments, for which no number is looked at."""
    views = any(one.alias_info is not None and not one.alias_info.is_write for one in func._schema.returns)
    return views and func.namespace == "aten"


class Current:
    """How many devices there are, and which is the current one."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.index = 0

    def full(self, device: Any) -> torch.device:
        """The device with its index: `full("cuda")` is `cuda:0`."""
        if isinstance(device, int):
            return torch.device("cuda", device)
        device = torch.device(device)
        return device if device.index is not None else torch.device("cuda", self.index)


class Devices(FunctionMode):  # type: ignore[misc]
    """Gives every device that a call names its index: torch would ask a driver which one "cuda" is."""

    def __init__(self, current: Current) -> None:
        super().__init__()
        self.current = current

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if kwargs and on_device(kwargs.get("device")):
            kwargs = {
                **kwargs,
                "device": self.current.full(kwargs["device"]),
                **({"pin_memory": False} if kwargs.get("pin_memory") else {}),
            }
        elif kwargs and kwargs.get("pin_memory"):
            kwargs = {**kwargs, "pin_memory": False}
        return func(*args, **(kwargs or {}))


class Marks(DispatchMode):  # type: ignore[misc]
    """Marks what operations on marked tensors give, and computes in float32 what a CPU cannot in half precision."""

    supports_higher_order_operators = True
    stays_below = True
    """The trace's own modes go above: what it sees, and what it computes itself, is a device's."""

    def __init__(self, assumed: Assumed, run: Kernel) -> None:
        super().__init__()
        self.assumed = assumed
        self.run = run

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for kind in types:
            if kind not in torch_private.PLAIN and not torch_private.is_plain(kind):
                # The operations inside of a DTensor come here by themselves; FakeTensors are asked for a shape.
                return func(*args, **kwargs) if torch_private.simulates(kind) else NotImplemented
        if not isinstance(func, torch._ops.OpOverload):
            return self._of_operators(func, args, kwargs)
        if func is ITEM and not isinstance(args[0], Tensor):
            return args[0]  # of the 2 that `loss / 2` keeps for backward: a number that was wrapped comes unwrapped
        try:
            out = self.run(func, args, kwargs)
        except (RuntimeError, NotImplementedError) as error:
            if "not implemented for" not in str(error) and "Unsupported dtype" not in str(error):
                raise
            out = self._in_float32(func, args, kwargs, error)
        if kwargs.get("device") is not None or is_view(func):
            return out  # placed by its name, or where its storage is
        index = _first_index(args)
        if index is None and kwargs:
            index = _first_index(tuple(kwargs.values()))
        if index is not None:
            for tensor in _tensors(out):
                mark(tensor, index)
        return out

    def _of_operators(self, func: Any, args: Any, kwargs: Any) -> Any:
        """An operator that calls others, which come here in their turn."""
        with self:
            if func.name() == "run_dtensor_rng_op":  # what a GPU's generator would have to be moved on for
                return args[2](*args[3:], **kwargs)
            key = torch._C.DispatchKey.CompositeExplicitAutograd
            if key in func.py_kernels:
                return func.py_kernels[key](*args, **kwargs)
        return func(*args, **kwargs)

    def _in_float32(self, func: Any, args: Any, kwargs: Any, error: Exception) -> Any:
        """The same in float32, rounded to the dtype that it came in."""
        low = next((tensor.dtype for tensor in _tensors((*args, *kwargs.values())) if tensor.dtype in LOW), None)
        placed = _first_index((*args, *kwargs.values())) is not None
        if low is None or not placed or func._schema.is_mutable:
            raise error
        self.assumed.note(f"{func._schema.name} in {low}: computed in float32 and rounded, a CPU has no kernel of it")

        def wide(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.float() if value.dtype in LOW else value
            return type(value)(map(wide, value)) if isinstance(value, (list, tuple)) else value

        out = func(*map(wide, args), **{name: wide(value) for name, value in kwargs.items()})

        def narrow(value: Any) -> Any:
            if isinstance(value, Tensor):
                complex32 = torch.complex32 if value.dtype is torch.complex64 else value.dtype
                return value.to(low) if value.dtype is torch.float32 else value.to(complex32)
            return type(value)(map(narrow, value)) if isinstance(value, (list, tuple)) else value

        return narrow(out)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _tensors(each)


def _first_index(args: tuple[Any, ...]) -> int | None:
    """The device of the first marked tensor among arguments."""
    for arg in args:
        if isinstance(arg, Tensor):
            index = index_of(arg)
            if index is not None:
                return index
        elif isinstance(arg, (list, tuple)):
            index = _first_index(tuple(arg))
            if index is not None:
                return index
    return None


def with_numbers(func: Any, args: Any, kwargs: Any) -> Any:
    """Runs an operation as it is."""
    return func(*args, **kwargs)


def install(patches: Patches, current: Current, assumed: Assumed, run: Kernel = with_numbers) -> Any:
    """Lets tensors be made on the device, moved there, and say so. Gives the dispatch mode that marks them."""
    _kernels(patches, current)
    _questions(patches)
    _moves(patches, current)
    return _modes(patches, current, assumed, run)


def _kernels(patches: Patches, current: Current) -> None:
    """What makes a tensor on the key CUDA: all factories of torch come down to these."""
    library = torch.library.Library("aten", "IMPL")
    patches.undo.callback(library._destroy)

    def place(device: Any) -> int:
        return current.index if device is None or device.index is None else device.index

    def empty(size: Any, *, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None,
              memory_format: Any = None) -> Tensor:  # fmt: skip
        shape = memory_format or torch.contiguous_format
        return mark(torch.empty(size, dtype=dtype, device=CPU, memory_format=shape), place(device))

    def empty_strided(size: Any, stride: Any, *, dtype: Any = None, layout: Any = None, device: Any = None,
                      pin_memory: Any = None) -> Tensor:  # fmt: skip
        return mark(torch.empty_strided(size, stride, dtype=dtype, device=CPU), place(device))

    def triangle(op: Any) -> Any:
        def make(*args: Any, device: Any = None, pin_memory: Any = None, layout: Any = None, **kwargs: Any) -> Tensor:
            return mark(op(*args, device=CPU, **kwargs), place(device))

        return make

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a build for CUDA has kernels of its own, and says that these take their place
        library.impl("empty.memory_format", empty, "CUDA")
        library.impl("empty_strided", empty_strided, "CUDA")
        library.impl("tril_indices", triangle(torch.ops.aten.tril_indices.default), "CUDA")
        library.impl("triu_indices", triangle(torch.ops.aten.triu_indices.default), "CUDA")


def _questions(patches: Patches) -> None:
    """What Python asks a tensor about its place; C++ goes on seeing a CPU tensor."""

    def device(tensor: Tensor) -> torch.device:
        index = index_of(tensor)
        return real_device(tensor) if index is None else torch.device("cuda", index)

    patches.set(Tensor, "device", property(device))
    patches.set(Tensor, "is_cuda", property(lambda tensor: tensor.device.type == "cuda"))
    patches.set(Tensor, "is_cpu", property(lambda tensor: tensor.device.type == "cpu"))
    patches.wrap(
        Tensor, "get_device", lambda real: lambda tensor: tensor.device.index if tensor.is_cuda else real(tensor)
    )
    patches.wrap(Tensor, "is_pinned", lambda real: lambda tensor, *device: not tensor.is_cuda)
    patches.wrap(Tensor, "pin_memory", lambda real: lambda tensor, *device: tensor)
    patches.wrap(Tensor, "record_stream", lambda real: lambda tensor, stream: None)

    def kind(real: Any) -> Any:
        def type_(tensor: Tensor, dtype: Any = None, non_blocking: bool = False, **kwargs: Any) -> Any:
            if dtype is None:
                name = str(real(tensor)).replace("torch.cuda.", "torch.")
                return name.replace("torch.", "torch.cuda.", 1) if tensor.is_cuda else name
            if isinstance(dtype, str):
                moved = tensor.to("cuda" if dtype.startswith("torch.cuda.") else "cpu")
                return real(moved, dtype.replace("torch.cuda.", "torch."), non_blocking, **kwargs)
            return real(tensor, dtype, non_blocking, **kwargs)

        return type_

    patches.wrap(Tensor, "type", kind)

    def wrapper(real: Any) -> Any:
        def make(kind: Any, *args: Any, **kwargs: Any) -> Tensor:
            if not on_device(kwargs.get("device")):
                made: Tensor = real(kind, *args, **kwargs)
                return made
            index = torch.device(kwargs["device"]).index or 0
            return mark(real(kind, *args, **{**kwargs, "device": CPU}), index)

        return make

    patches.wrap(Tensor, "_make_wrapper_subclass", wrapper)


def _moves(patches: Patches, current: Current) -> None:
    """`to`, `cuda` and `cpu` copy from one place to the other, as they do where there are two."""

    def to(real: Any) -> Any:
        def moved(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            named = "device" in kwargs
            device = kwargs.get("device") if named else args[0] if args else None
            if isinstance(device, Tensor):  # `to(other)`
                return moved(tensor, device.device, device.dtype, *args[1:], **kwargs)
            if isinstance(device, bool) or not isinstance(device, (int, str, torch.device)):
                return real(tensor, *args, **kwargs)
            here = index_of(tensor)
            goes = current.full(device) if on_device(device) else torch.device(device)
            # torch calls this again for a mode or a subclass: what is asked then must come to the same.
            if goes.type == "cuda" and here == goes.index:
                rest = args if named else args[1:]
                asked = {**dict(zip(("dtype", "non_blocking", "copy"), rest, strict=False)), **kwargs}
                kept = {name: value for name, value in asked.items() if name != "device" and value is not None}
                return real(tensor, **kept) if kept else tensor
            if goes.type == "cpu" and here is not None:
                kwargs["copy"] = True  # to torch it is there already
            if named:
                return real(tensor, *args, **{**kwargs, "device": goes})
            return real(tensor, goes, *args[1:], **kwargs)

        return moved

    patches.wrap(Tensor, "to", to)
    patches.set(
        Tensor,
        "cuda",
        lambda tensor, device=None, non_blocking=False, **kwargs: tensor.to("cuda" if device is None else device),
    )
    patches.wrap(torch.nn.Module, "to", _module_to(current))
    patches.wrap(Tensor, "cpu", lambda real: lambda tensor, **kwargs: tensor.to("cpu"))


def _module_to(current: Current) -> Any:
    """`Module.to(0)`: torch would ask a driver which device a bare number is."""

    def to(real: Any) -> Any:
        def moved(module: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
            if args and isinstance(args[0], int) and not isinstance(args[0], bool):
                args = (current.full(args[0]), *args[1:])
            if on_device(kwargs.get("device")):
                kwargs["device"] = current.full(kwargs["device"])
            return real(module, *args, **kwargs)

        return moved

    return to


def _modes(patches: Patches, current: Current, assumed: Assumed, run: Kernel) -> Any:
    """Puts both modes into this thread and those that it starts, and the first into backward, where torch leaves it."""
    devices, marks = patches.enter(Devices(current)), patches.enter(Marks(assumed, run))

    def start(real: Any) -> Any:
        def in_thread(thread: threading.Thread) -> None:
            with devices, marks:
                real(thread)

        return in_thread

    patches.wrap(threading.Thread, "run", start)
    below = torch_private.modes_below
    patches.set(torch_private, "modes_below", lambda: max(0, below() - 1))

    def backward(real: Any) -> Any:
        def engine(*args: Any, **kwargs: Any) -> Any:
            with devices:
                return real(*args, **kwargs)

        return engine

    graph = importlib.import_module("torch.autograd.graph")
    patches.wrap(graph, "_engine_run_backward", backward)
    patches.set(torch.autograd, "_engine_run_backward", graph._engine_run_backward)
    context = importlib.import_module("torch.utils._device").DeviceContext
    patches.wrap(
        context,
        "__init__",
        lambda real: lambda self, device: real(self, current.full(device) if on_device(device) else device),
    )
    return marks
