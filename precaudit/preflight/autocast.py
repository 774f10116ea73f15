"""CUDA's autocast on CPU tensors: the lists of the installed torch's own header, as kernels on the key AutocastCPU.

Within a region that asked for cuda that key is on, with cuda's dtype. Operations that both devices lower keep torch's
kernel; what CUDA widens, promotes or refuses gets one of ours; what only the CPU widens is passed through. Outside of
such regions every one of ours calls the kernel that stood there, so that `autocast("cpu")` is what it was.

Known limitations: within a region for cuda, CPU tensors are autocast as if they were on the device.
"""

from __future__ import annotations

import os
import re
import threading
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .assumed import refuse
from .patches import Patches

LOW = (torch.float16, torch.bfloat16)
KEY = torch._C.DispatchKey.AutocastCPU
LISTS = {
    "AT_FORALL_LOWER_PRECISION_FP": "lower",
    "AT_FORALL_FP32": "float32",
    "AT_FORALL_FP32_SET_OPT_DTYPE": "output",
    "AT_FORALL_PROMOTE": "promote",
}
"""The macro of `ATen/autocast_mode.h` -> what autocast does with its operations."""
WITH_DTYPE = {
    "norm.Scalar": "ScalarOpt_dtype",
    "norm.ScalarOpt_dim": "ScalarOpt_dim_dtype",
    "norm.names_ScalarOpt_dim": "names_ScalarOpt_dim_dtype",
}
"""Overload that autocast calls with a dtype behind its arguments -> the overload that has one."""
BANNED = (
    "torch.nn.functional.binary_cross_entropy and torch.nn.BCELoss are unsafe to autocast.\nMany models use a sigmoid "
    "layer right before the binary cross entropy layer.\nIn this case, combine the two layers using "
    "torch.nn.functional.binary_cross_entropy_with_logits\nor torch.nn.BCEWithLogitsLoss.  "
    "binary_cross_entropy_with_logits and BCEWithLogits are\nsafe to autocast."
)


def read_lists(header: str) -> dict[str, str]:
    """Operation, "softmax.int", -> what CUDA's autocast does with it, from the text of the header."""
    found = dict.fromkeys(WITH_DTYPE, "norm") | {"binary_cross_entropy": "banned"}
    for macro, what in LISTS.items():
        body = re.search(rf"#define {macro}\(_\)(.*?)\n\s*\n", header, re.S)
        for name, overload in re.findall(r"\b_\(\s*(?:ADD_NS\()?(\w+)\)?(?:,\s*(\w+))?\s*\)", body[1] if body else ""):
            found[f"{name}.{overload}" if overload else name] = what
    return found


def header() -> str:
    """The text of the installed torch's autocast_mode.h."""
    path = os.path.join(os.path.dirname(torch.__file__), "include", "ATen", "autocast_mode.h")
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError:
        way_out = "install the torch wheel as it is published, with its include folder"
        raise refuse("CUDA's autocast lists cannot be read: this torch comes without its headers", way_out) from None


def widened(value: Any) -> Any:
    """float32 of what is in half precision; anything else, and lists of it, alike."""
    return _each(value, lambda tensor: tensor.float() if tensor.dtype in LOW else tensor)


def _each(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (list, tuple)) and any(isinstance(one, Tensor) for one in value):
        return [_each(one, change) for one in value]
    return value


def _dtypes(value: Any) -> set[torch.dtype]:
    if isinstance(value, Tensor):
        return {value.dtype}
    return set().union(*map(_dtypes, value)) if isinstance(value, (list, tuple)) else set()


set_on, is_on = torch._C.set_autocast_enabled, torch._C.is_autocast_enabled
set_dtype, get_dtype = torch._C.set_autocast_dtype, torch._C.get_autocast_dtype
"""torch's own: those of `torch` are replaced."""


class Lists:
    """CUDA's lists at work, in this thread wherever autocast is on for cuda."""

    def __init__(self) -> None:
        self._outside = torch._C.DispatchKeySet(KEY)

    def install(self, patches: Patches) -> None:
        """Puts a kernel in for each operation that the two devices autocast differently."""
        library = torch.library.Library("aten", "IMPL")
        patches.undo.callback(library._destroy)
        lists = read_lists(header())
        own = torch._C._dispatch_has_kernel_for_dispatch_key
        names = [
            name.removeprefix("aten::") for name in torch._C._dispatch_get_all_op_names() if name.startswith("aten::")
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # each is told of as an override
            for name in sorted({*names, *lists}):
                what, theirs = lists.get(name), own(f"aten::{name}", "AutocastCPU") if name in names else False
                if name not in names or (what == "lower" and theirs) or (what is None and not theirs):
                    continue
                before = torch.library.get_kernel(f"aten::{name}", "AutocastCPU") if theirs else None
                library.impl(name, self._kernel(name, what or "pass", before), "AutocastCPU", with_keyset=True)

    def _kernel(self, name: str, what: str, before: Any) -> Callable[..., Any]:
        packet, _, overload = name.partition(".")
        op = getattr(getattr(torch.ops.aten, packet), overload or "default")
        cuda = getattr(self, f"_{what}")
        outside = self._outside
        typed = getattr(getattr(torch.ops.aten, packet), WITH_DTYPE[name]) if what == "norm" else op

        def kernel(keys: Any, *args: Any, **kwargs: Any) -> Any:
            if not is_on("cuda"):
                if before is not None:
                    return before.call_boxed(keys, *args, **kwargs)
                return op.redispatch(keys.remove(KEY), *args, **kwargs)
            if what == "pass":
                return op.redispatch(keys.remove(KEY), *args, **kwargs)
            with torch._C._ExcludeDispatchKeyGuard(outside):
                return cuda(typed, args, kwargs)

        return kernel

    def _pass(self, op: Any, args: Any, kwargs: Any) -> Any:
        return op(*args, **kwargs)

    def _lower(self, op: Any, args: Any, kwargs: Any) -> Any:
        low = get_dtype("cuda")

        def narrow(tensor: Tensor) -> Tensor:
            return tensor.to(low) if tensor.dtype in (torch.float32, *LOW) else tensor

        return op(*(_each(arg, narrow) for arg in args), **{name: _each(arg, narrow) for name, arg in kwargs.items()})

    def _float32(self, op: Any, args: Any, kwargs: Any) -> Any:
        return op(*map(widened, args), **{name: widened(arg) for name, arg in kwargs.items()})

    def _output(self, op: Any, args: Any, kwargs: Any) -> Any:
        """A result in float32 of arguments as they are, where no dtype was asked for."""
        place = next(i for i, argument in enumerate(op._schema.arguments) if argument.name == "dtype")
        eligible = isinstance(args[0], Tensor) and args[0].is_floating_point() and args[0].dtype is not torch.float64
        if not eligible or kwargs.get("dtype") is not None or (len(args) > place and args[place] is not None):
            return op(*args, **kwargs)
        return op(*args[:place], *args[place + 1 :], **{**kwargs, "dtype": torch.float32})

    def _norm(self, op: Any, args: Any, kwargs: Any) -> Any:
        tensor = args[0]
        dtype = torch.float32 if tensor.dtype in LOW else tensor.dtype
        given = [argument.name for argument in op._schema.arguments]
        named = dict(zip(given, args, strict=False)) | kwargs
        named.setdefault("keepdim", False) if "keepdim" in given else None
        positional = [named[name] for name in given if name in named and name != "dtype"]
        return op(*positional, dtype=dtype)

    def _promote(self, op: Any, args: Any, kwargs: Any) -> Any:
        if torch.float32 in _dtypes([*args, *kwargs.values()]):
            return self._float32(op, args, kwargs)
        return op(*args, **kwargs)

    def _banned(self, op: Any, args: Any, kwargs: Any) -> Any:
        raise RuntimeError(BANNED)


class State(threading.local):
    """What autocast says of each device, and the one key that both share.

    torch keeps the state of "cuda" without a GPU; that of "cpu" is the key itself, and is kept here while cuda has it.
    """

    def __init__(self) -> None:
        self.cpu_on = False
        self.cpu_dtype = torch.bfloat16

    def set_autocast_enabled(self, *args: Any) -> None:
        """`set_autocast_enabled("cuda", True)`; with one argument, of cuda."""
        device, on = args if len(args) == 2 else ("cuda", args[0])
        if device == "cpu":
            self.cpu_on = on
        else:
            set_on(device, on)
        self._settle()

    def is_autocast_enabled(self, device: str = "cuda") -> bool:
        """Whether autocast is on for a device."""
        return self.cpu_on if device == "cpu" else is_on(device)

    def set_autocast_dtype(self, device: str, dtype: torch.dtype) -> None:
        """The dtype that autocast lowers to on a device."""
        if device == "cpu":
            self.cpu_dtype = dtype
        else:
            set_dtype(device, dtype)
        self._settle()

    def get_autocast_dtype(self, device: str) -> torch.dtype:
        """The dtype that autocast lowers to on a device."""
        return self.cpu_dtype if device == "cpu" else get_dtype(device)

    def _settle(self) -> None:
        """Gives the shared key to cuda where autocast is on for it, else to the CPU."""
        on = is_on("cuda")
        set_on("cpu", on or self.cpu_on)
        dtype = get_dtype("cuda") if on else self.cpu_dtype
        if get_dtype("cpu") is not dtype:
            set_dtype("cpu", dtype)

    def install(self, patches: Patches) -> None:
        """Lets torch ask and tell this state."""
        names = ("set_autocast_enabled", "is_autocast_enabled", "set_autocast_dtype", "get_autocast_dtype")
        for name in names:
            patches.set(torch, name, getattr(self, name))
        patches.set(torch, "is_autocast_cpu_enabled", lambda: self.cpu_on)
        patches.set(torch, "set_autocast_cpu_enabled", lambda on: self.set_autocast_enabled("cpu", on))
        patches.set(torch, "get_autocast_cpu_dtype", lambda: self.cpu_dtype)
        patches.set(torch, "set_autocast_cpu_dtype", lambda dtype: self.set_autocast_dtype("cpu", dtype))
        patches.set(torch, "set_autocast_gpu_dtype", lambda dtype: self.set_autocast_dtype("cuda", dtype))


def install(patches: Patches) -> None:
    """Makes autocast("cuda") what it is on a GPU, for CPU tensors."""
    Lists().install(patches)
    State().install(patches)
