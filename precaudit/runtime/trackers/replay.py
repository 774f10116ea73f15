"""Runs the ops of an update a second time, in float32, on what the first of them read: the exact step, unrounded.

A shadow stands for one stretch of memory and holds what float32 would hold there by now. In AdamW, `denom = v.sqrt()`
of a bfloat16 `v` gives `denom` a shadow, `denom.add_(eps)` is added to it, and `p.addcdiv_(m, denom)` moves the shadow
of `p` by what is in those of `m` and `denom`. What the parameter itself kept of that step is then compared.

Of a stretch longer than the sample, every so many elements are followed, through elementwise ops, and into norms, sums
and means of all elements, which are those of the sample for so many more (LAMB's trust ratio). Where a value
comes from something that cannot be run again (random numbers, a library's kernel, a matmul of which only samples are
held) its shadow is unknown, and so is all that is computed from it: no number is made of it.

Known limitations: what passes through Python numbers (`.item()`) is as rounded as it was.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import torch_private as private
from ..dtypes import LOW
from ..guard import is_programs_own
from ..process.ledger import Ledger
from . import samples
from .kept import Numbers, columns
from .kept import rows as numbers_of

ELEMENTWISE = frozenset("copy_ _to_copy clone zero_ fill_ masked_fill_".split())
"""Ops that torch does not tag as pointwise, and are."""
NOT_ELEMENTWISE = frozenset("_foreach_norm _foreach_max".split())
GROWTH = {"linalg_vector_norm": 0.5, "_foreach_norm": 0.5, "sum": 1.0, "mean": 0.0}
"""Numbers computed of all elements, and by which power of their count they grow."""
FUSED = "_fused_"
SHAPES_ONLY = frozenset("empty_like zeros_like ones_like full_like new_zeros new_ones new_empty new_full".split())
"""Their results do not depend on the values of what they are given."""
OVERWRITING = frozenset("copy_ zero_ fill_ _foreach_copy_ _foreach_zero_".split())
ABOUT = 2.0**-6
"""What low precision may change a number by, of its size."""
REFUSALS = (RuntimeError, TypeError, ValueError, IndexError)
"""What torch raises where it does not run an op on such tensors."""
MANY = 1 << 20
"""Elements that may lie in shadows of freed memory."""


class Unknown(Exception):
    """What float32 would give here cannot be told."""


class Recipe(NamedTuple):
    """How an op is run again."""

    written: tuple[tuple[int, str], ...]
    """Positions and names of the arguments it writes to."""
    in_place: bool
    """It writes to the first alone."""
    repeatable: bool
    """Running it again gives the same; random numbers and a library's own kernels do not."""
    elementwise: bool
    lists: bool
    """It takes lists of tensors and treats them index by index."""
    fused: bool
    overwrites: bool
    """What it writes does not depend on what was there."""
    growth: float | None
    """See GROWTH."""


def recipe_of(func: Any) -> Recipe:
    """Reads an op's schema and tags."""
    schema = func._schema
    name = schema.name.partition("::")[2]
    written = [(at, arg.name) for at, arg in enumerate(schema.arguments) if arg.alias_info and arg.alias_info.is_write]
    lists = name.startswith(("_foreach_", FUSED))
    pointwise = torch.Tag.pointwise in func.tags or name in ELEMENTWISE or (lists and name not in NOT_ELEMENTWISE)
    random = torch.Tag.nondeterministic_seeded in func.tags
    repeatable = not random and schema.name.startswith("aten::") and name not in ("set_", "resize_", "resize_as_")
    in_place = [at for at, _ in written] == [0]
    fused, overwrites, growth = name.startswith(FUSED), name in OVERWRITING, GROWTH.get(name)
    return Recipe(tuple(written), in_place, repeatable, pointwise, lists, fused, overwrites, growth)


def computes(func: Any) -> bool:
    """Whether an op gives new values: no view of old ones, nothing random, nothing that only has a shape."""
    schema = getattr(func, "_schema", None)
    if schema is None or torch.Tag.nondeterministic_seeded in func.tags:
        return False
    views = any(given.alias_info is not None for given in schema.returns)
    name = schema.name.partition("::")[2]
    return not views and not schema.name.startswith("prim") and name not in SHAPES_ONLY and not name.startswith("empty")


class Shadow:
    """A stretch of memory, and what it would hold in float32."""

    __slots__ = (
        "before", "dtype", "exact", "first", "fresh", "last", "pin", "size", "stride", "strides", "tensor", "whole",
    )  # fmt: skip

    def __init__(self, tensor: Tensor, first: int, last: int, exact: Tensor | None, fresh: bool) -> None:
        self.pin = private.weak_storage(tensor)
        """A weak reference to the storage, which keeps its key from being given to another."""
        self.dtype = tensor.dtype
        self.first, self.last = first, last
        self.whole = first == 0 and last * tensor.element_size() == tensor.untyped_storage().nbytes()
        """The stretch is all of its storage."""
        self.size, self.strides = tensor.size(), tensor.stride()
        self.stride = samples.stride(last - first)
        self.exact = exact
        """In the layout of the tensor, or flat where it is a sample; None where it is unknown."""
        self.fresh = fresh
        """It holds what the memory holds."""
        self.before: Tensor | None = None
        """What it held before the first write."""
        self.tensor: Tensor | None = None
        """What was written to, where nobody else will know it when it is measured."""

    def of(self, tensor: Tensor, held: Tensor) -> Tensor:
        """The part of `held` (exact, or before) that stands for this tensor, which lies inside the stretch."""
        offset = tensor.storage_offset()
        if self.stride > 1:
            if offset != self.first or _end(tensor) != self.last:
                raise Unknown
            return held
        if tensor.size() == self.size and tensor.stride() == self.strides:
            return held
        return torch.as_strided(held, tensor.size(), tensor.stride(), held.storage_offset() + offset - self.first)


class Row(NamedTuple):
    """One tensor to be compared, flat."""

    at: int
    stands_for: float
    """Elements of the tensor for each one of these."""
    exact: Tensor
    before: Tensor
    after: Tensor


def _end(tensor: Tensor) -> int:
    """One past the last element in its storage."""
    offset = int(tensor.storage_offset())
    if tensor.is_contiguous():
        return offset + int(tensor.numel())
    return offset + 1 + int(sum((n - 1) * s for n, s in zip(tensor.size(), tensor.stride(), strict=True)))


def _dense(tensor: Tensor) -> bool:
    """Whether its elements fill their stretch of memory, each once."""
    return tensor.is_contiguous() or (
        _end(tensor) - tensor.storage_offset() == tensor.numel() and 0 not in tensor.stride()
    )


def _in_memory(tensor: Tensor, first: int, last: int, stride: int) -> Tensor:
    """Every `stride`-th element of a stretch of the tensor's storage."""
    return torch.as_strided(tensor.detach(), (-(-(last - first) // stride),), (stride,), first)


class Replay:
    """All shadows, by storage and place."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._shadows: dict[int, list[Shadow]] = {}
        """Storage -> its shadows, in the order of memory; they do not overlap."""
        self._recipes: dict[int, Recipe] = {}
        self._held = 0
        """Elements in shadows, those of freed memory too."""
        self._sweep_at = MANY
        self._alone = False
        """The op that is run again reads all but what it writes as it is."""
        self._own: list[Shadow] = []
        """The shadows that it writes to."""
        self.spoiled = False
        """Something unknown became a Python number, or a step read gradients again after it had moved parameters."""
        self._doubts: list[Tensor] = []

    def __bool__(self) -> bool:
        return bool(self._shadows)

    # -- ops

    def write(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], keeps: bool) -> None:
        """Runs an in-place op on the shadows of what it is given; call it before the op itself runs.

        With `keeps` what is written holds on to its tensor, so that `others` can tell of it, and all else that is given
        counts as it is: of a running sum, what the additions lost.
        """
        recipe = self._recipe(func)
        targets = _written(recipe, args, kwargs)
        low = any(target.dtype in LOW for target in targets)
        if not low and (keeps or not self._descends(args, kwargs)):
            return
        if not recipe.repeatable:
            for target in targets:
                self.lose(target)
            return
        self._alone = keeps
        for part, extra in self._attempt(func, recipe, args, kwargs, None):
            for target in _written(recipe, part, extra):
                self.lose(target)
        for target in targets if keeps else ():
            shadow = self._find(target)
            if shadow is not None and shadow.tensor is None:
                shadow.tensor = target.detach()

    def targets(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        """What an op writes to, of that which it is given; with `out=` too."""
        return _written(self._recipe(func), args, kwargs)

    def overwritten(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Something wrote to these that cannot be run again."""
        for target in self.targets(func, args, kwargs):
            if self._shadows or target.dtype in LOW:
                self.lose(target)

    def made(self, func: Any, name: str, args: tuple[Any, ...], kwargs: Any, out: Any) -> None:
        """Gives what an op has computed a shadow, where float32 would have given something else."""
        if name == "_local_scalar_dense":
            self._read_by_python(args[0], out)
            return
        results = _tensors((out,))
        low = any(result.dtype in LOW for result in results)
        if not results or not (low or self._descends(args, kwargs or {})):
            return
        self._alone = False
        given = {private.storage_key(tensor) for tensor in _tensors((*args, *(kwargs or {}).values()))}
        if not given or private.storage_key(results[0]) in given:  # nothing, or a view that is not declared as one
            return
        recipe = self._recipe(func)
        if not recipe.repeatable:
            for result in results:
                self._keep(result, None)
            return
        self._attempt(func, recipe, args, kwargs or {}, out)

    def _recipe(self, func: Any) -> Recipe:
        recipe = self._recipes.get(id(func))
        if recipe is None:
            recipe = self._recipes[id(func)] = recipe_of(func)
        return recipe

    def _descends(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether something that is given has a shadow which differs from it."""
        if not self._shadows:
            return False
        for tensor in _tensors((*args, *kwargs.values())):
            shadow = self._find(tensor)
            if shadow is not None and not shadow.fresh:
                return True
        return False

    def _attempt(
        self, func: Any, recipe: Recipe, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        """Runs the op on shadows; index by index where lists of it are not all known. Returns what could not be run."""
        length = max((len(a) for a in args if isinstance(a, (list, tuple))), default=0) if recipe.lists else 0
        try:
            self._run(func, recipe, args, kwargs, out)
            return []
        except Unknown:
            if length > 1:
                failed = []
                for at in range(length):
                    part = tuple(_one(a, at, length) for a in args)
                    extra = {key: _one(value, at, length) for key, value in kwargs.items()}
                    failed += self._attempt(func, recipe, part, extra, None if out is None else [out[at]])
                return failed
        except REFUSALS as error:
            if is_programs_own(error):
                raise
        except Exception:  # a fault of ours: no number may rest on what was there before
            for target in _written(recipe, args, kwargs):
                self.lose(target)
            raise
        for result in _tensors((out,)):
            self._keep(result, None)
        return [(args, kwargs)]

    def _run(self, func: Any, recipe: Recipe, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        sampled = self._is_sampled(recipe, args, kwargs, out)
        self._own = [self._writable(target, recipe.overwrites) for target in _written(recipe, args, kwargs)]
        exact, fused = self._operand, recipe.fused
        given = [exact(value, sampled, fused) for value in args]
        result = func(*given, **{key: exact(value, sampled, fused) for key, value in kwargs.items()})
        if sampled and recipe.growth is not None:
            result = _grown(recipe.growth, args[0], given[0], result)
        for real, wide in zip(_tensors((out,)), _tensors((result,)), strict=True) if out is not None else ():
            if not sampled and wide.stride() != real.stride():
                wide = torch.empty_strided(real.size(), real.stride(), dtype=wide.dtype, device=wide.device).copy_(wide)
            self._keep(real, wide)

    def _is_sampled(self, recipe: Recipe, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> bool:
        """Whether the op runs on samples: its tensors are long, and laid out alike."""
        limit = samples.limit()
        for tensor in _tensors((*args, *kwargs.values(), out) if kwargs else (*args, out)):
            if tensor.numel() > limit:
                break
        else:
            return False
        if not recipe.elementwise and not _is_of_all(recipe, args, out):
            raise Unknown
        given = [a for a in (*args, *kwargs.values(), out) if isinstance(a, (Tensor, list, tuple))]
        length = max((len(a) for a in given if not isinstance(a, Tensor)), default=1)
        for at in range(length):
            together = [a if isinstance(a, Tensor) else a[at] for a in given if isinstance(a, Tensor) or at < len(a)]
            longer = [t for t in together if isinstance(t, Tensor) and t.numel() > 1]
            for tensor in longer:
                alike = tensor.size() == longer[0].size() and tensor.stride() == longer[0].stride()
                if not alike or not _dense(tensor):
                    raise Unknown
        return True

    def _operand(self, value: Any, sampled: bool, fused: bool) -> Any:
        """What stands for one argument in float32."""
        if isinstance(value, (int, float)):
            return value
        if isinstance(value, Tensor):
            shadow = self._find(value)
            if self._alone and not any(shadow is own for own in self._own):
                shadow = None
            elif shadow is None and value.dtype in LOW:
                shadow = self._read(value)
            if shadow is not None:
                if shadow.exact is None or shadow.dtype is not value.dtype:
                    raise Unknown
                wide = shadow.of(value, shadow.exact)
            elif sampled and value.numel() > samples.limit():
                first, last = value.storage_offset(), _end(value)
                wide = _in_memory(value, first, last, samples.stride(last - first))
            else:
                wide = value.detach()
            if shadow is None and value.dtype in LOW:
                wide = wide.to(_wide(value.dtype))
            return wide.reshape(()) if sampled and value.numel() == 1 and not fused else wide
        if isinstance(value, (list, tuple)):
            return [self._operand(item, sampled, fused) for item in value]
        return _wide(value) if isinstance(value, torch.dtype) else value

    # -- shadows

    def _find(self, tensor: Tensor) -> Shadow | None:
        """The shadow in whose stretch the tensor lies."""
        held = self._shadows.get(private.storage_key(tensor))
        if held is None:
            return None
        if held[0].whole:  # nearly always
            return held[0]
        at = bisect_right(held, tensor.storage_offset(), key=_first) - 1
        return held[at] if at >= 0 and _end(tensor) <= held[at].last else None

    def _read(self, tensor: Tensor) -> Shadow:
        """A shadow of what the memory holds now: of a short storage the whole, else of the tensor's own stretch."""
        key = private.storage_key(tensor)
        if not key:
            raise Unknown
        whole = tensor.untyped_storage().nbytes() // tensor.element_size()
        first, last = tensor.storage_offset(), _end(tensor)
        if whole <= samples.limit():
            first, last = 0, whole
        stride = samples.stride(last - first)
        alone = stride == 1 and last - first == tensor.numel() and _dense(tensor)
        values = tensor.detach() if alone else _in_memory(tensor, first, last, stride)
        exact = values.to(_wide(tensor.dtype), copy=True)
        shadow = Shadow(values, first, last, exact, True)
        self._put(key, shadow)
        if shadow.exact is None:
            raise Unknown
        return shadow

    def _writable(self, target: Tensor, overwrites: bool) -> Shadow:
        """The target's shadow, which may be written to from here on; what it held is kept."""
        shadow = self._find(target) or self._read(target)
        if shadow.exact is None and overwrites and self._fills(target, shadow):
            self.forget(target)
            shadow = self._read(target)
        if shadow.fresh and shadow.exact is not None:
            shadow.fresh, shadow.before, shadow.exact = False, shadow.exact, shadow.exact.clone()
        return shadow

    @staticmethod
    def _fills(target: Tensor, shadow: Shadow) -> bool:
        return target.storage_offset() == shadow.first and _end(target) == shadow.last and _dense(target)

    def _keep(self, result: Tensor, exact: Tensor | None) -> None:
        """The shadow of something new."""
        key = private.storage_key(result)
        if key:
            first, last = result.storage_offset(), _end(result)
            self._put(key, Shadow(result, first, last, exact, False))

    def _put(self, key: int, shadow: Shadow) -> None:
        """Files a shadow; where another one holds part of its stretch nobody can tell any more what either holds."""
        self._held += _size(shadow)
        if self._held > self._sweep_at:
            self._sweep()
        held = self._shadows.get(key)
        if held is None:
            self._shadows[key] = [shadow]
            return
        at = bisect_right(held, shadow.first, key=_first)
        begin = at - 1 if at and held[at - 1].last > shadow.first else at
        while at < len(held) and held[at].first < shadow.last:
            at += 1
        if held[begin:at] and not all(
            shadow.first <= o.first and o.last <= shadow.last and o.fresh for o in held[begin:at]
        ):
            shadow.exact = None
            shadow.first = min(shadow.first, held[begin].first)
            shadow.last = max(shadow.last, *(other.last for other in held[begin:at]))
            shadow.whole = False
        held[begin:at] = [shadow]

    def _sweep(self) -> None:
        """Forgets the shadows of memory that was freed."""
        for key in [key for key, held in self._shadows.items() if held[0].pin.expired()]:
            del self._shadows[key]
        self._held = sum(_size(shadow) for held in self._shadows.values() for shadow in held)
        self._sweep_at = 2 * self._held + MANY

    def lose(self, tensor: Tensor) -> None:
        """The tensor is written to in a way that cannot be run again."""
        self.forget(tensor)
        self._keep(tensor, None)

    def forget(self, tensor: Tensor) -> None:
        """What this tensor's memory holds by now is what it is meant to hold."""
        if self._shadows:
            key = private.storage_key(tensor)
            held = self._shadows.get(key)
            if held is not None:
                first, last = tensor.storage_offset(), _end(tensor)
                kept = [shadow for shadow in held if shadow.last <= first or last <= shadow.first]
                self._replace(key, kept)

    def _replace(self, key: int, kept: list[Shadow]) -> None:
        if kept:
            self._shadows[key] = kept
        else:
            self._shadows.pop(key, None)

    def begin(self, spoiled: bool = False) -> None:
        """Forgets all shadows: from here on, what memory holds is what is read."""
        self._shadows.clear()
        self._doubts.clear()
        self._held, self._sweep_at = 0, MANY
        self.spoiled = spoiled

    def doubts(self) -> list[Tensor]:
        """Whether each value that became a Python number was far from what float32 gives; 0-d tensors."""
        return list(self._doubts)

    def _read_by_python(self, tensor: Tensor, number: Any) -> None:
        """A value became a Python number, as rounded as it is: fine, as long as it is about what float32 gives."""
        shadow = self._find(tensor)
        if shadow is None or shadow.fresh or self.spoiled:
            return
        try:
            if shadow.exact is None:
                raise Unknown
            exact = shadow.of(tensor, shadow.exact).reshape(())
            far = exact != number if isinstance(number, bool) else (exact - number).abs() > ABOUT * exact.abs()
            self._doubts.append(far)
        except Unknown:
            self.spoiled = True

    @property
    def moved(self) -> bool:
        """Whether something that is known from before was written to."""
        return any(shadow.before is not None for held in self._shadows.values() for shadow in held)

    # -- what was kept

    def others(self, storages: Collection[int] | None = None) -> Iterator[tuple[Tensor, Shadow]]:
        """What was written (in these storages) with `keeps`, taken out."""
        for key in list(self._shadows) if storages is None else storages:
            for shadow in self._shadows.pop(key, ()):
                # FSDP2 frees what it gathered by shrinking its storage to nothing: reading that would end the process.
                if shadow.tensor is not None and shadow.tensor.untyped_storage().nbytes():
                    yield shadow.tensor, shadow

    def shadow_of(self, tensor: Tensor) -> Shadow | None:
        """The shadow that a known tensor was given by writes to it; None where it was not written to."""
        shadow = self._find(tensor) if self._shadows and private.storage_key(tensor) else None
        return None if shadow is None or shadow.fresh else shadow

    def measure(self, pairs: Iterable[tuple[Tensor, Shadow]], use: Callable[[int, Numbers], None]) -> None:
        """Compares each tensor with its shadow; `use` gets the index of each and its numbers at the next settle."""
        by_kind: dict[Any, list[Row]] = {}
        for index, (tensor, shadow) in enumerate(pairs):
            if shadow.exact is None or shadow.before is None or shadow.dtype is not tensor.dtype:
                continue
            try:
                exact, before = shadow.of(tensor, shadow.exact), shadow.of(tensor, shadow.before)
            except Unknown:
                continue
            after = tensor.detach()
            if shadow.stride > 1:
                after = _in_memory(tensor, shadow.first, shadow.last, shadow.stride)
            if not exact.numel() == before.numel() == after.numel() > 0:  # resized since
                continue
            by_kind.setdefault((tensor.dtype, exact.dtype, tensor.device), []).append(
                Row(index, tensor.numel() / exact.numel(), *(held.reshape(-1) for held in (exact, before, after)))
            )
        for rows in by_kind.values():
            for batch in samples.batches(len(row.exact) for row in rows):
                self._compare([rows[index] for index in batch], use)

    def _compare(self, rows: list[Row], use: Callable[[int, Numbers], None]) -> None:
        """Five sums for each row, in a few large operations for all of them."""
        exact, before, after = (
            held[0] if len(rows) == 1 else torch.cat(held)
            for held in ([r.exact for r in rows], [r.before for r in rows], [r.after for r in rows])
        )
        indices, stand_for = [row.at for row in rows], [row.stands_for for row in rows]

        def read(values: list[float]) -> None:
            for index, numbers in zip(indices, numbers_of(values, stand_for), strict=True):
                use(index, numbers)

        self.ledger.defer(columns(exact, before, after, [len(row.exact) for row in rows]), read)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in LOW else dtype


def _is_of_all(recipe: Recipe, args: tuple[Any, ...], out: Any) -> bool:
    """Whether an op gives one number for all elements of a tensor: their sum, their mean, their 2-norm."""
    more = args[1:] if recipe.growth == GROWTH["_foreach_norm"] else [None] if args[1:] else []
    return recipe.growth is not None and all(n == 2 for n in more) and all(t.numel() == 1 for t in _tensors((out,)))


def _grown(power: float, real: Any, sample: Any, result: Any) -> list[Tensor]:
    """What a number of a sample comes to for all elements; each result in turn."""
    each = zip(_tensors((real,)), _tensors((sample,)), _tensors((result,)), strict=True)
    return [number * (whole.numel() / some.numel()) ** power for whole, some, number in each]


def _size(shadow: Shadow) -> int:
    """Elements that a shadow holds, and something for itself."""
    return 64 + (shadow.exact.numel() if shadow.exact is not None else 0)


def _first(shadow: Shadow) -> int:
    return shadow.first


def _one(value: Any, at: int, length: int) -> Any:
    """What belongs to one index of an op over lists."""
    return value[at : at + 1] if isinstance(value, (list, tuple)) and len(value) == length else value


def _written(recipe: Recipe, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    if recipe.in_place and isinstance(args[0], Tensor):  # nearly always
        return [args[0]]
    return _tensors(args[at] if at < len(args) else kwargs.get(name) for at, name in recipe.written)


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among these, those inside lists included."""
    out: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            out.append(value)
        elif isinstance(value, (list, tuple)):
            out += [item for item in value if isinstance(item, Tensor)]
    return out
