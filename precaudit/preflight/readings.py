"""What a program reads of tensors without numbers: what a healthy run would show, each answer counted with its line.

One policy: flags, counts and scales keep their value; of the rest a loss is 1.0, a count 1, a flag False; there is no
inf and no NaN; of a mask SHARE is true. Nothing is written to files.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .assumed import Assumed
from .patches import Patches
from .placement import MARK, index_of
from .room import REAL, SIZE, VALUE, Room, has_numbers, nbytes, usual, value_of

SHARE = 0.5
"""The part of a mask that is taken to be true."""
aten = torch.ops.aten


def true_in(run: Any, mask: Tensor) -> int:
    """How many elements of a mask are true."""
    value, count = value_of(mask), int(mask.numel())
    if value is REAL:
        return int(mask.count_nonzero())
    if value is not None:
        return count if value else 0
    run.assumed.note(f"a mask without numbers: {SHARE:.0%} of it true")
    return math.ceil(count * SHARE)


def read(assumed: Assumed, tensor: Tensor) -> Any:
    """The number that stands for one which is not there."""
    value = value_of(tensor)
    if value is None:
        value = usual(tensor)
        if not torch._C._is_torch_function_all_disabled():  # so the trace reads, for itself
            assumed.note(f"a number was read that is not there: {value}")
    return value


def _number(run: Any, args: Any, kwargs: Any) -> Any:
    value = read(run.assumed, args[0])
    return bool(value) if args[0].dtype is torch.bool else value


def _equal(run: Any, args: Any, kwargs: Any) -> bool:
    run.assumed.note("tensors without numbers were compared: equal")
    return bool(args[0].shape == args[1].shape)


def _integers(run: Any, like: Tensor, *size: int) -> Tensor:
    made: Tensor = run.room.like(torch.empty(size, dtype=torch.int64, device="meta"), index_of(like))
    return made


def _nonzero(run: Any, args: Any, kwargs: Any) -> Tensor:
    return _integers(run, args[0], true_in(run, args[0]), args[0].dim())


def _masked_select(run: Any, args: Any, kwargs: Any) -> Tensor:
    made: Tensor = run.room.like(
        torch.empty(true_in(run, args[1]), dtype=args[0].dtype, device="meta"), index_of(args[0])
    )
    return made


def _unique(run: Any, args: Any, kwargs: Any) -> tuple[Tensor, ...]:
    run.assumed.note("unique: every element of a tensor without numbers")
    count = args[0].numel()
    return args[0].reshape(-1), _integers(run, args[0], count), _integers(run, args[0], count)


def _bincount(run: Any, args: Any, kwargs: Any) -> Tensor:
    least = kwargs.get("minlength", args[2] if len(args) > 2 else 0)
    run.assumed.note(f"bincount of a tensor without numbers: {max(1, least)} bins")
    return _integers(run, args[0], max(1, least))


def _repeats(run: Any, args: Any, kwargs: Any) -> Tensor:
    size = kwargs.get("output_size")
    if size is None:
        run.assumed.note("repeat_interleave of a tensor without numbers: once each")
    return _integers(run, args[0], args[0].numel() if size is None else size)


ANSWERS: dict[Any, Callable[[Any, Any, Any], Any]] = {
    aten._local_scalar_dense.default: _number,
    aten.equal.default: _equal,
    aten.nonzero.default: _nonzero,
    aten.masked_select.default: _masked_select,
    aten._unique2.default: _unique,
    aten.unique_consecutive.default: _unique,
    aten.bincount.default: _bincount,
    aten.repeat_interleave.Tensor: _repeats,
    aten._assert_async.default: lambda run, args, kwargs: None,
    aten._assert_async.msg: lambda run, args, kwargs: None,
}
"""Operations whose result, or its size, hangs on numbers -> what stands for it."""


def install(patches: Patches, assumed: Assumed, room: Room) -> None:
    """Lets Python read tensors and storages without numbers, and write them nowhere."""

    def plain(tensor: Tensor) -> Tensor:
        value = read(assumed, tensor)
        return torch.full((), value, dtype=tensor.dtype, device="cpu").expand(tensor.size())

    def lists(real: Any) -> Any:
        return lambda tensor: real(tensor if has_numbers(tensor) else plain(tensor))

    def arrays(real: Any) -> Any:
        def numpy(tensor: Tensor, **kwargs: Any) -> Any:
            return real(tensor, **kwargs) if has_numbers(tensor) else real(plain(tensor.detach()), **kwargs)

        return numpy

    def text(real: Any) -> Any:
        def shown(tensor: Tensor, **kwargs: Any) -> Any:
            if has_numbers(tensor):
                return real(tensor, **kwargs)
            return f"tensor(..., size={tuple(tensor.size())}, dtype={tensor.dtype}, device='{tensor.device}')"

        return shown

    patches.wrap(Tensor, "tolist", lists)
    patches.wrap(Tensor, "numpy", arrays)
    patches.wrap(Tensor, "__repr__", text)
    patches.wrap(torch, "save", _saving(assumed))
    _storages(patches, room)


def _storages(patches: Patches, room: Room) -> None:
    """A storage without memory is resized in name, and copied as another one."""
    kind = torch.UntypedStorage

    def there(storage: Any) -> bool:
        return getattr(storage, VALUE, REAL) is REAL

    def size(real: Any) -> Any:
        return lambda storage: real(storage) if there(storage) else getattr(storage, SIZE, nbytes(storage))

    def resize(real: Any) -> Any:
        def resize_(storage: Any, count: int) -> Any:
            if there(storage):
                return real(storage, count)
            setattr(storage, SIZE, count)
            return storage

        return resize_

    def clone(real: Any) -> Any:
        def cloned(storage: Any) -> Any:
            if there(storage):
                return real(storage)
            made = room.storage(nbytes(storage), getattr(storage, VALUE))
            if hasattr(storage, MARK):
                setattr(made, MARK, getattr(storage, MARK))
            return made

        return cloned

    patches.wrap(kind, "size", size)
    patches.wrap(kind, "nbytes", size)
    patches.wrap(kind, "__len__", size)
    patches.wrap(kind, "resize_", resize)
    patches.wrap(kind, "clone", clone)


def _saving(assumed: Assumed) -> Any:
    """torch.save of what has no numbers writes nothing."""

    def hollow(value: Any, depth: int = 6) -> bool:
        if isinstance(value, Tensor):
            return not has_numbers(value)
        if depth and isinstance(value, dict):
            return any(hollow(one, depth - 1) for one in value.values())
        return bool(depth) and isinstance(value, (list, tuple)) and any(hollow(one, depth - 1) for one in value)

    def save(real: Any) -> Any:
        def saved(obj: Any, *args: Any, **kwargs: Any) -> None:
            held = (
                {**dict(obj.named_parameters()), **dict(obj.named_buffers())}
                if isinstance(obj, torch.nn.Module)
                else obj
            )
            if hollow(held):
                assumed.note("torch.save wrote nothing: what it was given has no numbers")
            else:
                real(obj, *args, **kwargs)

        return saved

    return save
