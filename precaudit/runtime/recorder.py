"""For --verify-undisturbed: hashes all that a run computes, step by step, in the same way with the trace and without.

Known limitations: steps that call no hook of torch's are seen at the next backward only, by their loss; weights that no
optimizer holds (an EMA kept beside it) are not hashed.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import hashlib
import json
import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from . import torch_private as private

Rows = dict[str, str]
"""What was hashed -> its hash: "gradient of fc1.weight"."""


def start(settings: Mapping[str, Any]) -> None:
    """Records this process, if that was asked for."""
    if settings.get("record_folder"):
        Recorder(settings["record_folder"]).install()


class Recorder:
    """Writes a line for each backward and each optimizer step of this process into a file of its own."""

    def __init__(self, folder: str) -> None:
        self._path = os.path.join(folder, f"record-{os.getpid()}.jsonl")
        self._pid = os.getpid()
        self._names: dict[int, str] = {}
        """`id` of a parameter or buffer -> what the modules call it."""

    def install(self) -> None:
        """Begins; before the trace does, whose last step may be the process's last."""
        register_optimizer_step_pre_hook(self._before_step)
        register_optimizer_step_post_hook(self._after_step)
        private.patch_engine(self._around_backward)

    def _around_backward(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def _engine_run_backward(t_outputs: Any, *args: Any, **kwargs: Any) -> Any:
            if not private.is_tracing() and private.graph_task_id() == -1:
                self._record("backward", lambda: _losses(t_outputs))
            return original(t_outputs, *args, **kwargs)

        return _engine_run_backward

    def _before_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if not torch.compiler.is_compiling():
            self._record("gradients", lambda: self._gradients(optimizer))

    def _after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if not torch.compiler.is_compiling():
            self._record("step", lambda: self._of_step(optimizer))

    def _record(self, event: str, rows: Callable[[], Rows]) -> None:
        """Adds a line; the process trains on, whatever becomes of it."""
        if os.getpid() != self._pid:
            return
        with contextlib.suppress(OSError), _unseen():
            line = json.dumps({"rank": _rank(), "event": event, "rows": rows()})
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(line + "\n")

    # -- what is hashed

    def _gradients(self, optimizer: Any) -> Rows:
        self._names = _names(optimizer)
        rows = {}
        for name, parameter in self._parameters(optimizer):
            if parameter.grad is not None:
                rows[f"gradient of {name}"] = _hash(parameter.grad)
        return rows

    def _of_step(self, optimizer: Any) -> Rows:
        rows = {}
        for name, parameter in self._parameters(optimizer):
            rows[f"parameter {name}"] = _hash(parameter)
            with contextlib.suppress(Exception):  # a state of the optimizer's own making
                for key, value in _leaves(optimizer.state.get(parameter)):
                    rows[f"optimizer state {key} of {name}"] = value
        rows.update(_buffers(optimizer))
        rows.update(_random_states())
        return rows

    def _parameters(self, optimizer: Any) -> Iterator[tuple[str, Tensor]]:
        number = 0
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                yield self._names.get(id(parameter), f"{number} of {type(optimizer).__name__}"), parameter
                number += 1


@contextlib.contextmanager
def _unseen() -> Iterator[None]:
    """Inside no mode, the trace's neither, and outside of autograd."""
    modes, grad = private.pop_all(), torch.is_grad_enabled()
    torch._C._set_grad_enabled(False)
    try:
        with private.no_function_modes():
            yield
    finally:
        torch._C._set_grad_enabled(grad)
        private.push_all(modes)


def _losses(roots: Any) -> Rows:
    return {f"loss {number}": _hash(root) for number, root in enumerate(roots) if isinstance(root, Tensor)}


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """The tensors and numbers in a value, hashed, with the keys that lead to them: "exp_avg", "moments.0"."""
    if isinstance(value, Tensor):
        yield key, _hash(value)
    elif isinstance(value, bool | int | float):
        yield key, repr(value)
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _leaves(item, f"{key}.{name}".strip("."))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _leaves(item, f"{key}.{number}".strip("."))


def _hash(tensor: Tensor) -> str:
    """Of dtype, shape and bits; of a wrapper, of what it holds; "unread" where a class does not let that be seen."""
    sha = hashlib.blake2b(digest_size=8)
    for name, part in private.parts(tensor):
        if type(part) not in private.PLAIN and not private.is_plain(type(part)):
            return "unread"
        sha.update(f"{name} {part.dtype} {tuple(part.shape)}".encode())
        try:
            flat = part.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1).view(torch.uint8)
        except RuntimeError:  # sparse, meta, quantised
            return "unread"
        sha.update((ctypes.c_char * flat.numel()).from_address(flat.data_ptr()) if flat.numel() else b"")
    return sha.hexdigest()


def _modules_of(optimizer: Any) -> list[Any]:
    """The outermost modules that hold a parameter of this optimizer, found without a trace of it: by the collector."""
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    parents: dict[int, list[Any]] = {}
    open_ends = []
    for one in gc.get_objects():
        if issubclass(type(one), torch.nn.Module):
            for child in (one.__dict__.get("_modules") or {}).values():
                parents.setdefault(id(child), []).append(one)
            if any(id(each) in held for each in (one.__dict__.get("_parameters") or {}).values()):
                open_ends.append(one)
    roots, seen = [], set()
    while open_ends:
        one = open_ends.pop()
        if id(one) not in seen:
            seen.add(id(one))
            open_ends += parents.get(id(one), [])
            if id(one) not in parents:
                roots.append(one)
    return roots


def _walk(module: Any, table: str, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """The parameters or buffers below a module with their names, by its tables alone: no code of the user's runs."""
    for name, tensor in (module.__dict__.get(table) or {}).items():
        if isinstance(tensor, Tensor):
            yield prefix + name, tensor
    for name, child in (module.__dict__.get("_modules") or {}).items():
        if child is not None and depth < 200:
            yield from _walk(child, table, f"{prefix}{name}.", depth + 1)


def _names(optimizer: Any) -> dict[int, str]:
    found: dict[int, str] = {}
    for root in _modules_of(optimizer):
        for name, parameter in _walk(root, "_parameters"):
            if len(name) > len(found.get(id(parameter), "")):
                found[id(parameter)] = name
    return found


def _buffers(optimizer: Any) -> Rows:
    found: dict[int, tuple[str, Tensor]] = {}
    for root in _modules_of(optimizer):
        for name, buffer in _walk(root, "_buffers"):
            if len(name) > len(found.get(id(buffer), ("",))[0]):
                found[id(buffer)] = name, buffer
    return {f"buffer {name}": _hash(buffer) for name, buffer in found.values()}


def _random_states() -> Rows:
    """Hashes of the random states; of Python's and numpy's, which the system seeds unless the program does, the place

    in their sequence too: that is the same in two runs that draw the same number of times.
    """
    rows = {"random state of torch": _hash(torch.random.get_rng_state())}
    if torch.cuda.is_initialized():
        for number, state in enumerate(torch.cuda.get_rng_state_all()):
            rows[f"random state of cuda:{number}"] = _hash(state)
    numpy = sys.modules.get("numpy.random")
    states = {"Python": random.getstate()[1], "numpy": (*numpy.get_state()[1], numpy.get_state()[2]) if numpy else ()}
    for name, words in states.items():
        if words:
            rows[f"random place of {name}"] = str(words[-1])
            rows[f"random state of {name}"] = hashlib.blake2b(repr(words).encode(), digest_size=8).hexdigest()
    return rows


def _rank() -> int:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return int(torch.distributed.get_rank())
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) or 0)
