"""`--fake`: operations on tensors without numbers, by their meta kernels, which know shapes and dtypes alone.

What makes a large tensor makes one without memory (`room`), and results of such have no numbers either. Numbers are
kept where control flow asks for them: of tensors with up to LIMIT elements, unless they are floating and on the device
with more than one. What is read of the others is what a healthy run would show (`readings`).

Known limitations: an operation whose size only numbers tell, and which `readings` does not know, is refused.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .assumed import Assumed, refuse
from .placement import index_of, is_view, mark, on_device
from .readings import ANSWERS, true_in
from .room import REAL, Room, forget, has_numbers, nbytes, value_of

LIMIT = 1 << 16
"""Elements of a tensor that may have numbers."""
aten = torch.ops.aten
FAKE = torch._C._TorchDispatchModeKey.FAKE
CPU_KEY = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)

SAME = frozenset("_to_copy clone max min amax amin any all mean repeat cat stack copy_ _unsafe_view".split())
"""Operations whose result has the one value that their argument has."""
COMPUTED = frozenset(
    "logical_or logical_and logical_not bitwise_or bitwise_and bitwise_not add sub mul div eq ne lt gt le ge abs neg "
    "maximum minimum clamp reciprocal add_ sub_ mul_ div_ logical_or_ bitwise_or_".split()
)
"""Operations whose result has one value where each argument has one: it is computed for one element."""
CONSTANT = {"zeros": 0, "zeros_like": 0, "new_zeros": 0, "zero_": 0, "ones": 1, "ones_like": 1, "new_ones": 1}
"""Operations whose result has this one value."""
FILLED = {"full": 1, "full_like": 1, "new_full": 2, "fill_": 1}
"""Operations whose result has the value of this argument."""
INDEXED = (aten.index.Tensor, aten.index_put.default, aten._unsafe_index.Tensor)
KEPT = {aten._amp_foreach_non_finite_check_and_unscale_.default: "found_inf"}
"""Operation -> what it writes that keeps its value: a healthy run finds no inf."""


def tensors(value: Any, found: list[Tensor] | None = None) -> list[Tensor]:
    """All tensors among arguments."""
    found = [] if found is None else found
    if isinstance(value, Tensor):
        found.append(value)
    elif isinstance(value, (list, tuple)):
        for one in value:
            tensors(one, found)
    elif isinstance(value, dict):
        for one in value.values():
            tensors(one, found)
    return found


def each(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """Arguments with each tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if type(value) in (list, tuple):
        return type(value)(each(one, change) for one in value)
    return {name: each(one, change) for name, one in value.items()} if isinstance(value, dict) else value


def place_of(device: Any, given: list[Tensor]) -> int | None:
    """The index of the device that results are on: the one that was named, else the first that an argument is on."""
    if device is not None:
        return (torch.device(device).index or 0) if on_device(device) else None
    return next((index for index in map(index_of, given) if index is not None), None)


class Numberless:
    """Runs operations where numbers may be missing."""

    def __init__(self, assumed: Assumed) -> None:
        self.assumed = assumed
        self.room = Room()
        self.mode: Any = None
        """The dispatch mode that calls this; it is put in again around what calls other operations."""
        for name in ("torch._meta_registrations", "torch._decomp", "torch._refs"):
            importlib.import_module(name)

    def __call__(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What `func(*args, **kwargs)` gives."""
        if is_view(func) or torch._C._get_dispatch_mode(FAKE) is not None:
            return func(*args, **kwargs)  # no number is looked at; torch itself asks for a shape, as DTensor does
        given = tensors((args, kwargs))
        if func.namespace not in ("aten", "prims", "prim"):
            return self._foreign(func, args, kwargs, given)
        if all(map(has_numbers, given)):
            return self._of_numbers(func, args, kwargs, given)
        if func in ANSWERS:
            return ANSWERS[func](self, args, kwargs)
        if torch.Tag.inplace_view in func.tags:
            return self._seen_otherwise(func, args, kwargs)
        if func._schema.is_mutable:
            return self._written(func, args, kwargs, given)
        return self._made(func, args, kwargs, given)

    def _foreign(self, func: Any, args: Any, kwargs: Any, given: list[Tensor]) -> Any:
        """A library's operation: by its meta kernel where it has one, else as the calls that it makes."""
        if not given:
            return func(*args, **kwargs)
        if not all(map(has_numbers, given)) and "c10d" not in func.namespace:
            if func._schema.is_mutable:
                return self._written(func, args, kwargs, given)
            try:
                return self._made(func, args, kwargs, given)
            except (NotImplementedError, RuntimeError):
                pass
        with self.mode:  # the kernel itself, whose own calls come here
            return func.redispatch(CPU_KEY, *args, **kwargs)

    def _of_numbers(self, func: Any, args: Any, kwargs: Any, given: list[Tensor]) -> Any:
        """All arguments have numbers: so has what is made of them, unless it is too large or of the device."""
        device = kwargs.get("device")
        place = place_of(device, given)
        if not (device is not None or not given or place is not None) or func in ANSWERS:
            return func(*args, **kwargs)  # on the CPU alone
        if (device is not None and torch.device(device).type not in ("cpu", "cuda")) or (
            device is None and any(one.device.type == "meta" for one in given)
        ):
            return func(*args, **kwargs)
        if func._schema.is_mutable:
            return func(*args, **kwargs)
        try:
            shapes = self._shapes(func, args, kwargs)
        except (RuntimeError, NotImplementedError, TypeError, ValueError):  # numbers tell it, and they are there
            return func(*args, **kwargs)
        if all(self._keeps(one, place) for one in tensors(shapes)):
            return func(*args, **kwargs)
        return self._without(shapes, place, self._known(func, args))

    def _keeps(self, shape: Tensor, place: int | None) -> bool:
        """Whether a tensor of this size and dtype has numbers."""
        inexact = shape.is_floating_point() or shape.is_complex()
        most = 1 if inexact and place is not None else LIMIT
        return bool(shape.numel() <= most)

    def _shapes(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What the meta kernel gives; an argument that it gives back is that argument."""
        twins: dict[int, Tensor] = {}
        own: dict[int, Tensor] = {}

        def twin(tensor: Tensor) -> Tensor:
            made = twins.get(id(tensor))
            if made is None:
                made = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta")
                twins[id(tensor)] = made
                own[id(made)] = tensor
            return made

        there = dict(kwargs)
        if any(argument.name == "device" for argument in func._schema.arguments):
            there["device"] = torch.device("meta")
        if "pin_memory" in there:
            there["pin_memory"] = None
        if "generator" in there:
            there["generator"] = None
        found = func(*each(self._counted(func, args), twin), **each(there, twin))
        return each(found, lambda shape: own.get(id(shape), shape))

    def _counted(self, func: Any, args: Any) -> Any:
        """Masks among indices as the indices that they come to, whose number a meta kernel cannot know."""
        if func not in INDEXED:
            return args
        indices: list[Any] = []
        for one in args[1]:
            if isinstance(one, Tensor) and one.dtype in (torch.bool, torch.uint8):
                count = true_in(self, one)
                indices += [torch.empty(count, dtype=torch.int64, device="meta") for _ in range(one.dim())]
            else:
                indices.append(one)
        return args[0], indices, *args[2:]

    def _made(self, func: Any, args: Any, kwargs: Any, given: list[Tensor]) -> Any:
        """New tensors."""
        try:
            shapes = self._shapes(func, args, kwargs)
        except NotImplementedError as error:
            with self.mode:
                found = func.decompose(*args, **kwargs)
            if found is NotImplemented:
                what = f"--fake: {func._schema.name} needs numbers to tell what size it gives"
                raise refuse(what, "run it without --fake, with a smaller model") from error
            return found
        return self._without(shapes, place_of(kwargs.get("device"), given), self._known(func, args))

    def _without(self, shapes: Any, place: int | None, value: Any) -> Any:
        """Tensors of these shapes; of one known value, and small, with it."""

        def make(shape: Tensor) -> Tensor:
            if shape.device.type != "meta" or index_of(shape) is not None:
                return shape
            if value is not None and self._keeps(shape, place):
                return mark(torch.full(shape.size(), value, dtype=shape.dtype, device="cpu"), place)
            return self.room.like(shape, place, value)

        return each(shapes, make)

    def _known(self, func: Any, args: Any) -> Any:
        """The one value that all elements of the result have; None where there is none, or nobody knows."""
        name = func._schema.name.removeprefix("aten::")
        if name in CONSTANT:
            return CONSTANT[name]
        if name in FILLED:
            args = (args[FILLED[name]],)
        elif name in ("isnan", "isinf"):
            return False
        elif name in ("eq", "ne") and (args[0] is args[1] or args[1] in (math.inf, -math.inf)):
            return (name == "eq") is (args[0] is args[1])  # how isfinite and isnan are written, of a healthy run
        elif name not in SAME and name not in COMPUTED:
            return None
        values = [_one(arg) if isinstance(arg, Tensor) else arg for arg in args]
        if any(isinstance(arg, Tensor) and value is None for arg, value in zip(args, values, strict=True)):
            return None
        if name not in COMPUTED:
            value = values[1] if name == "copy_" else values[0]
            return value if isinstance(value, (bool, int, float)) else None
        single = [
            torch.tensor(value, dtype=arg.dtype) if isinstance(arg, Tensor) else value
            for arg, value in zip(args, values, strict=True)
        ]
        return getattr(aten, name.rstrip("_"))(*single).item()

    def _written(self, func: Any, args: Any, kwargs: Any, given: list[Tensor]) -> Any:
        """In place, or `out=`: nothing is computed, and what was written to has no numbers after that."""
        declared = func._schema.arguments
        named = {**dict(zip((one.name for one in declared), args, strict=False)), **kwargs}
        value = self._known(func, args)
        written: list[Any] = []
        for one in declared:
            if one.alias_info is None or not one.alias_info.is_write or one.name not in named:
                continue
            target = named[one.name]
            written.append(target)
            if one.is_out and isinstance(target, Tensor) and target.numel() == 0:
                self._grow(func, args, kwargs, target)
            if KEPT.get(func) != one.name:
                for tensor in tensors(target):
                    forget(tensor, value)
        returns = func._schema.returns
        if not returns:
            return None
        if all(one.alias_info is not None for one in returns):
            return written[0] if len(returns) == 1 else tuple(written)
        return self._without(self._shapes(func, args, kwargs), place_of(None, given), None)

    def _grow(self, func: Any, args: Any, kwargs: Any, target: Tensor) -> None:
        """`out=` of an empty tensor takes the size of what is written."""
        plain = getattr(getattr(aten, func._schema.name.removeprefix("aten::")), "default", None)
        if plain is not None:
            shape = self._shapes(plain, args, {name: one for name, one in kwargs.items() if name != "out"})
            made = self.room.like(shape, index_of(target))
            target.set_(made.untyped_storage(), 0, made.size(), made.stride())

    def _seen_otherwise(self, func: Any, args: Any, kwargs: Any) -> Any:
        """`squeeze_`, `set_`, `resize_`: no number changes, but what is seen of them."""
        if func._schema.name == "aten::resize_":
            tensor, size = args[0], args[1]
            if math.prod(size) * tensor.element_size() > nbytes(tensor.untyped_storage()):
                made = self.room.like(torch.empty(size, dtype=tensor.dtype, device="meta"), index_of(tensor))
                return tensor.set_(made.untyped_storage(), 0, size, made.stride())
        return func(*args, **kwargs)


def _one(tensor: Tensor) -> Any:
    """The value of all elements; None where there is not one."""
    value = value_of(tensor)
    if value is not REAL:
        return value
    return tensor.item() if tensor.numel() == 1 and tensor.device.type != "meta" else None
