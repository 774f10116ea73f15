"""Every private torch name precaudit uses, in one place, each with what is lost where it is missing."""

from __future__ import annotations

import functools
import os
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from types import CodeType, ModuleType
from typing import Any

import torch
import torch.autograd.graph
import torch.utils._python_dispatch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

DispatchMode: Any = torch.utils._python_dispatch.TorchDispatchMode

graph_task_id: Callable[[], int] = torch._C._current_graph_task_id
"""-1 outside of backward."""

PLAIN = frozenset({torch.Tensor, torch.nn.Parameter, torch.nn.parameter.Buffer})
"""Classes whose tensors hold their own numbers; wrappers such as DTensor hold other tensors."""


def storage_key(tensor: Tensor) -> int:
    """What views of one allocation share; 0 for tensors without storage (sparse, fake, nested)."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (RuntimeError, NotImplementedError, AttributeError):
        return 0


def weak_storage(tensor: Tensor) -> Any:
    """A weak reference to the tensor's storage. While it is held, the storage's key is not given to another storage."""
    return StorageWeakRef(tensor.untyped_storage())


def local(tensor: Tensor) -> Tensor:
    """The rank's own tensor inside a DTensor; any other tensor as it is."""
    return getattr(tensor, "_local_tensor", tensor)


def next_sequence_number() -> int:
    """The number the next autograd node of this thread will get, -1 where torch does not tell."""
    ask = getattr(torch._C._autograd, "_get_sequence_nr", None)
    return int(ask()) if ask else -1


def sequence_number(node: Any) -> int:
    """The number an autograd node got when it was made, -1 where torch does not tell."""
    ask = getattr(node, "_sequence_nr", None)
    return int(ask()) if ask else -1


def output_metadata(node: Any) -> tuple[Any, ...]:
    """(dtype, shape) holders of the forward values an autograd node stands for."""
    try:
        return tuple(node._input_metadata)
    except (AttributeError, RuntimeError):
        return ()


def saved_factor(node: Any) -> float | None:
    """The Python number a MulBackward0 or DivBackward0 multiplied or divided by; None for anything on a device."""
    try:
        other = node._saved_other
    except (AttributeError, RuntimeError):
        return None
    if isinstance(other, Tensor):
        if other.numel() != 1 or other.device.type != "cpu":
            return None
        return float(other.item())
    return float(other) if isinstance(other, (int, float)) else None


def patch_engine(wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Callable[[], None]:
    """Wraps the one function all backward calls go through, however they were imported. Returns the undo."""
    original = torch.autograd.graph._engine_run_backward
    wrapped = wrap(original)
    holders: list[Any] = [torch.autograd, torch.autograd.graph]
    for holder in holders:
        holder._engine_run_backward = wrapped

    def undo() -> None:
        for holder in holders:
            if holder._engine_run_backward is wrapped:
                holder._engine_run_backward = original

    return undo


def patch_init_process_group(wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Callable[[], None]:
    """Wraps `init_process_group` under each name torch itself calls it by. Returns the undo."""
    original = getattr(torch.distributed, "init_process_group", None)
    if original is None:  # a torch built without distributed
        return lambda: None
    wrapped = functools.wraps(original)(wrap(original))
    holders: list[Any] = [
        module
        for name, module in list(sys.modules.items())
        if name.startswith("torch.distributed") and getattr(module, "init_process_group", None) is original
    ]
    for holder in holders:
        holder.init_process_group = wrapped

    def undo() -> None:
        for holder in holders:
            if holder.init_process_group is wrapped:
                holder.init_process_group = original

    return undo


def collectives_begun() -> dict[str, int]:
    """Process group -> collectives that this rank has begun in it; 0 or no entry where its backend does not count."""
    counts: dict[str, int] = {}
    try:
        for group in list(torch.distributed.distributed_c10d._world.pg_map):
            backends = {id(b): b for b in map(group._get_backend, group._device_types)}
            counts[group.group_name] = sum(int(b._get_sequence_number_for_group()) for b in backends.values())
    except (AttributeError, RuntimeError, TypeError):
        pass
    return counts


def rendezvous() -> str:
    """What all ranks of one process group have in common and no other group on this machine has: where they met."""
    try:
        store: Any = torch.distributed.distributed_c10d._get_default_store()
        while hasattr(store, "underlying_store"):
            store = store.underlying_store
        return str(getattr(store, "port", None) or getattr(store, "path", None) or "")
    except (AttributeError, RuntimeError, ValueError):
        return os.environ.get("MASTER_PORT", "")


_modes: weakref.WeakSet[Any] = weakref.WeakSet()


def stays_out_of_forks(mode: Any) -> None:
    """A forked DataLoader worker inherits the modes of the thread that forked it; this one is taken out there."""
    _watch_forks()
    _modes.add(mode)


@functools.cache
def _watch_forks() -> None:
    os.register_at_fork(after_in_child=_take_out_in_child)


def _take_out_in_child() -> None:
    for mode in list(_modes):
        take_out(mode)


def insert_at_bottom(mode: Any) -> None:
    """Puts a dispatch mode under all others, so that the user's own `with SomeMode():` blocks still close rightly."""
    stack = pop_all()
    torch._C._push_on_torch_dispatch_stack(mode)
    for other in stack:
        torch._C._push_on_torch_dispatch_stack(other)


def take_out(mode: Any) -> bool:
    """Takes the mode out wherever it is in this thread's stack; False where it is not there."""
    if not any(other is mode for other in _stack()):
        return False
    for other in pop_all():
        if other is not mode:
            torch._C._push_on_torch_dispatch_stack(other)
    return True


def take_out_all(kinds: tuple[type, ...]) -> None:
    """Takes every mode of these classes out of this thread's stack."""
    for mode in _stack():
        if isinstance(mode, kinds):
            take_out(mode)


def _stack() -> list[Any]:
    return [torch._C._get_dispatch_stack_at(i) for i in range(torch._C._len_torch_dispatch_stack())]


def pop_all() -> list[Any]:
    """This thread's modes, bottom first, taken off the stack; infra modes (fake, functional) stay where they are."""
    modes = []
    for _ in range(torch._C._len_torch_dispatch_stack()):
        top = torch._C._get_dispatch_stack_at(torch._C._len_torch_dispatch_stack() - 1)
        if getattr(top, "_mode_key", None) is not None:
            break
        modes.append(torch._C._pop_torch_dispatch_stack(None))
    return modes[::-1]


def push_all(modes: Iterable[Any]) -> None:
    """Puts modes on top of this thread's stack, bottom first."""
    for mode in modes:
        torch._C._push_on_torch_dispatch_stack(mode)


def no_function_modes() -> Any:
    """A context in which no TorchFunctionMode and no tensor subclass of the user sees a call."""
    return torch._C.DisableTorchFunction()


def hide_from_dynamo(modules: Iterator[ModuleType]) -> None:
    """Keeps torch.compile from compiling our own functions when user code calls ops after a graph break."""
    frames = sys.modules.get("torch._C._dynamo.eval_frame")
    skip = getattr(frames, "skip_code", None)
    if skip is None:
        return
    for module in modules:
        for code in _codes(module):
            skip(code)


def _codes(module: ModuleType) -> Iterator[CodeType]:
    pending: list[Any] = []
    for value in vars(module).values():
        if getattr(value, "__module__", None) != module.__name__:
            continue
        pending += [value, *vars(value).values()] if isinstance(value, type) else [value]
    codes = [getattr(getattr(value, "__func__", value), "__code__", None) for value in pending]
    stack = [code for code in codes if isinstance(code, CodeType)]
    while stack:
        code = stack.pop()
        yield code
        stack += [const for const in code.co_consts if isinstance(const, CodeType)]
