"""Abstract values: what the interpreter knows of a Python object, and how two such knowledges join."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from precaudit.model.vocabulary import FLOATING, LOW
from precaudit.static.language.heap import MISSING, Store

T = TypeVar("T")

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform
else:

    def dataclass_transform(**_):
        return lambda decorator: decorator


@dataclass_transform(eq_default=False, frozen_default=True, field_specifiers=(field,))
def record(cls: type[T]) -> type[T]:
    """A dataclass that is compared by identity. That nobody assigns to its fields is for mypy to see, not for a run."""
    return dataclass(slots=True, eq=False, repr=False)(cls)


Dtypes = frozenset[str]
"""The dtypes a tensor may have, all of them known; None stands for "cannot know"."""

NO_MARKS: frozenset[str] = frozenset()


@record
class Spot:
    """A syntax node in a source file; its line and column are computed only when something is reported there."""

    source: Any
    node: Any
    function: str = ""


class Mark(Generic[T]):
    """What one detector remembers of tensors: `SQUARE.put(tensor, spot)`, `SQUARE.of(tensor)`. Nobody else need know.

    It passes through views and splits; through an operation only where its detector puts it on the result. Where two
    paths meet, `join` says what is left; without one, whichever path has it. A cast to a wider dtype ends it, unless
    it `stays`.
    """

    __slots__ = ("join", "stays")

    def __init__(
        self, join: Callable[[T | None, T | None], T | None] = lambda one, other: one or other, stays: bool = False
    ) -> None:
        self.join = join
        self.stays = stays

    def of(self, value: Value) -> T | None:
        return value.notes.get(self) if isinstance(value, Tensor) else None

    def put(self, value: Value, note: T | None) -> None:
        """Notes it on a tensor that an operation has just made; None takes it off."""
        if isinstance(value, Tensor) and value.notes.get(self) is not note:
            notes = {mark: held for mark, held in value.notes.items() if mark is not self}
            value.notes = notes if note is None else {**notes, self: note}  # type: ignore[misc]


Notes = Mapping[Mark[Any], Any]
NO_NOTES: Notes = {}


def joined(one: Notes, other: Notes, low: bool) -> Notes:
    """What detectors still remember of a tensor that is either of two, and is low or may be wide."""
    if one is other and low:
        return one
    kept = {mark: mark.join(one.get(mark), other.get(mark)) for mark in {**one, **other} if low or mark.stays}
    return {mark: note for mark, note in kept.items() if note is not None}


class Value:
    """Anything an expression can stand for."""

    __slots__: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in self.__slots__)})"


@record
class Opaque(Value):
    """Nothing is known, but it may be a module or a tensor: what is done to it afterwards is remembered in `store`."""

    store: Store = field(default_factory=dict)
    dtype: Dtypes | None = None
    """Its dtype if it is a tensor, once `.half()` or `.to(dtype)` was applied."""
    marks: frozenset[str] = NO_MARKS
    spot: Spot | None = None
    """Where it was cast, if it is a tensor."""


@dataclass(frozen=True, slots=True)
class Const(Value):
    """A Python constant: None, bool, number, string."""

    value: Any


@dataclass(frozen=True, slots=True)
class Number(Value):
    """A Python number whose value is not known; it never promotes a tensor."""

    from_scale: bool = False
    """Read from a loss scaler."""
    counts: bool = False


@dataclass(frozen=True, slots=True)
class Ref(Value):
    """A name of an imported library, spelled as PyTorch spells it: `torch.nn.functional.softmax`."""

    name: str


@dataclass(frozen=True, slots=True)
class Unread(Ref):
    """A name in a module of the same project that was left unread, since nothing low begins there."""

    read: Callable[[], Value | None] = field(compare=False)
    """Runs the module after all, and gives what the name stands for."""


@record
class DType(Value):
    """torch.dtype: one, or one of several. `origin` is where it was written."""

    names: Dtypes
    origin: Spot | None = None
    read: bool = False
    """It is a tensor's own dtype, read off the tensor; `origin` is then where that was made so."""


@record
class Device(Value):
    """torch.device, by type."""

    types: frozenset[str]


@record
class Tensor(Value):
    """A tensor. `marks` say where it comes from (see `MARKS`); the spots say where a quality was acquired."""

    dtype: Dtypes | None
    spot: Spot | None = None
    op: str = ""
    marks: frozenset[str] = NO_MARKS
    zero_dim: bool = False
    loops: tuple[int, ...] = ()
    """The turns of the loops around its creation."""
    low_at: Spot | None = None
    """Where positions or a loss became low."""
    origin: Spot | None = None
    """Where its low dtype was written, if that is not at `spot`."""
    notes: Notes = field(default_factory=lambda: NO_NOTES)
    """What the detectors remember of it."""
    parts: tuple[Tensor, ...] = ()
    """The kept tensors that it is a sum of: weights, gradients, storage that was created."""

    @property
    def low(self) -> bool:
        return is_low(self.dtype)


MARKS = {
    "differentiable": "depends on a trainable parameter",
    "gradient": "comes from .grad",
    "optimizer_state": "read from an optimizer's state_dict",
    "ratio": "comes from gradients and does not grow with them",
    "inverse": "comes from gradients and shrinks as they grow",
    "unscaled": "comes from scaled gradients and was divided by the loss scale",
    "weights": "comes from a parameter or a buffer",
    "learnt": "comes from a parameter",
    "positions": "counts, indices or frequencies",
    "float16": "a gradient through float16 passes here",
    "bfloat16": "a gradient through bfloat16 passes here",
    "scaled": "multiplied by a GradScaler",
    "hand_scaled": "multiplied by a factor that may be a loss scale",
    "probabilities": "sigmoid or softmax output",
    "loss": "came out of a loss function",
    "created": "storage made by zeros, ones, full, clone, …",
    "counts": "was an integer",
    "cumulated": "a running sum",
    "decayed": "was multiplied in place",
    "uniform": "low uniform draws",
    "penalty": "gradients of a scaled value, for a gradient penalty",
    "recast": "was float32 in an autocast region and was cast low by hand",
    "single": "storage for one number",
    "schedule": "evenly spaced values: betas, sigmas, timesteps of a noise schedule",
    "was:<dtype>": "was of that low dtype where it became low",
    "small": "integers that every dtype holds",
    "asked_float32": "made float32 on purpose",
    "of:<identity>": "from the state dict of that module",
    "weights:<dtype>": "depends on a trainable parameter of that low dtype",
}


@record
class Param(Value):
    """A parameter or buffer. The store holds dtype, requires_grad, spot (what made it so), kind."""

    store: Store
    name: str = ""
    detached: bool = False
    """Read through `.data`."""
    among: tuple[Store, ...] = ()
    """The stores of those parameters of which it may be any."""

    @property
    def dtype(self) -> Dtypes | None:
        found: Dtypes | None = self.store.get("dtype")
        for store in self.among:
            found = join_dtypes(found, store.get("dtype"))
        return found

    @property
    def trainable(self) -> bool | None:
        found: bool | None = self.store.get("requires_grad")
        return found


@record
class Seq(Value):
    """A list, tuple, set or iterator. `open`: the items stand for an unknown number of such."""

    store: Store
    kind: str = "list"

    @property
    def items(self) -> tuple[Value, ...]:
        found: tuple[Value, ...] = self.store["items"]
        return found

    @property
    def open(self) -> bool:
        return bool(self.store.get("open"))


@record
class Dict(Value):
    """A dict by constant key; key `ANY` holds what was stored under keys that are not known."""

    store: Store
    kind: str = "dict"
    spot: Spot | None = None
    """Where it was written, if it began as a literal."""


ANY = "\0any"


@record
class Function(Value):
    """A function or lambda of the code under check."""

    node: Any
    scope: Any
    defaults: dict[str, Value] = field(default_factory=dict)
    owner: Any = None
    receiver: Value | None = None
    decorators: tuple[Value, ...] = ()
    kind: str = "function"


@record
class Class(Value):
    """A class of the code under check."""

    node: Any
    scope: Any
    bases: tuple[Value, ...]
    store: Store
    name: str
    decorators: tuple[Value, ...] = ()


@record
class Instance(Value):
    """An object: of a class under check, or of a known library class named by a Ref."""

    cls: Value
    store: Store = field(default_factory=dict)

    @property
    def library(self) -> str:
        return self.cls.name if isinstance(self.cls, Ref) else ""


@record
class Bound(Value):
    """A library method on a value: `tensor.float`, `optimizer.step`."""

    receiver: Value
    name: str


@record
class Optimizer(Value):
    """An optimizer. The store holds params (tuple of Param or Tensor), cls, spot, stepped, eps, …"""

    store: Store


@record
class Scaler(Value):
    """A GradScaler. `enabled` is None where `enabled=` is given and not known."""

    store: Store
    enabled: bool | None
    spot: Spot | None = None


@record
class Autocast(Value):
    """An autocast region. dtype None: not known."""

    devices: frozenset[str]
    dtype: Dtypes | None
    enabled: bool | None
    spot: Spot | None = None
    dtype_given: bool = True
    caches: bool = True
    """It may keep its copies of weights until it ends."""


@dataclass(frozen=True, slots=True)
class Context(Value):
    """no_grad, inference_mode, enable_grad, nullcontext."""

    kind: str


@record
class StateDict(Value):
    """What `.state_dict()` of something returned."""

    of: str
    store: Store = field(default_factory=dict)


@record
class Super(Value):
    """`super()` inside a method."""

    owner: Any
    receiver: Value


@record
class ModuleRef(Value):
    """A sibling source file, by its globals."""

    source: Any
    store: Store


@record
class Choice(Value):
    """One of several values, which one is not known."""

    options: tuple[Value, ...]


class Atom(NamedTuple):
    """A condition that is not made of others. Two with one key are true together."""

    key: Any
    words: frozenset[str]
    """The names in it, by which a loop may change it."""
    lasting: bool
    """It can only change by what the code under check assigns."""


class Assumed(NamedTuple):
    """A path's event: it took the side on which the condition is `wanted`. `held`: in an earlier turn of the loop."""

    kind: str
    key: Any
    wanted: bool
    atom: Atom


@record
class Paths(Value):
    """The event histories of the paths that lead here; each is a set of what has happened."""

    states: frozenset[frozenset[Any]]


NONE = Const(None)
TRUE = Const(True)
FALSE = Const(False)
MAX_OPTIONS = 6
MAX_PATHS = 24


def unknown(*marks: str) -> Opaque:
    return Opaque(marks=frozenset(marks))


def is_low(dtype: Dtypes | None) -> bool:
    """Whether every dtype it may have is low: the proof that rules ask for."""
    return bool(dtype) and dtype is not None and dtype <= LOW


def is_float(dtype: Dtypes | None) -> bool:
    return bool(dtype) and dtype is not None and all(name in FLOATING for name in dtype)


MAX_ITEMS = 4000
"""Items that are told apart; of a longer list it is only known what each may be."""


def seq(items: Iterable[Value], kind: str = "list", open: bool = False) -> Seq:
    held = tuple(items)
    if len(held) > MAX_ITEMS:
        held, open = (join_all(held),), True
    return Seq({"items": held, "open": open}, kind)


def options(value: Value) -> tuple[Value, ...]:
    """The alternatives of a Choice, or the value alone."""
    return value.options if isinstance(value, Choice) else (value,)


def choice(values: Iterable[Value]) -> Value:
    """One of these values; a single one when they are all the same."""
    kept: list[Value] = []
    for value in [option for each in values for option in options(each)]:
        if not any(_same(value, other) for other in kept):
            kept.append(value)
            if len(kept) > MAX_OPTIONS:
                return Opaque()
    if not kept:
        return Opaque()
    return kept[0] if len(kept) == 1 else Choice(tuple(kept))


def _same(one: Value, other: Value) -> bool:
    if one is other:
        return True
    kind = type(one)
    if kind is not type(other):
        return False
    if isinstance(one, Const) and isinstance(other, Const):
        return type(one.value) is type(other.value) and one.value == other.value
    if kind in (Ref, Unread, Number, Context):
        return one == other
    if isinstance(one, Function) and isinstance(other, Function):
        return one.node is other.node and one.receiver is other.receiver
    if isinstance(one, Bound) and isinstance(other, Bound):
        return one.receiver is other.receiver and one.name == other.name
    return False


def join_dtypes(one: Dtypes | None, other: Dtypes | None) -> Dtypes | None:
    return None if one is None or other is None else one | other


def join(one: Any, other: Any) -> Any:
    """What is known when either of two paths may have been taken."""
    if one is other or other is MISSING:
        return one
    if one is MISSING:
        return other
    if isinstance(one, Paths) and isinstance(other, Paths):
        return Paths(distinct(one.states | other.states))
    if not isinstance(one, Value) or not isinstance(other, Value):
        return _join_plain(one, other)
    if _same(one, other):
        return one
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return join_tensors(one, other)
    if isinstance(one, DType) and isinstance(other, DType):
        return DType(one.names | other.names, one.origin if one.names == other.names else None)
    if isinstance(one, Device) and isinstance(other, Device):
        return Device(one.types | other.types)
    if isinstance(one, (Const, Number)) and isinstance(other, (Const, Number)) and _numeric(one) and _numeric(other):
        return Number()
    if isinstance(one, Opaque) and isinstance(other, (Tensor, Opaque)):
        return Opaque(marks=one.marks | other.marks)
    if isinstance(other, Opaque) and isinstance(one, Tensor):
        return Opaque(marks=one.marks | other.marks)
    if isinstance(one, Seq) and isinstance(other, Seq) and len(one.items) == len(other.items):
        items = [join(a, b) for a, b in zip(one.items, other.items, strict=True)]
        return seq(items, one.kind, one.open or other.open)
    return choice([one, other])


@lru_cache(maxsize=4096)
def parted(state: frozenset[Any]) -> tuple[frozenset[Any], frozenset[Any]]:
    """What has happened on a path, and what it has assumed."""
    assumed = frozenset(event for event in state if type(event) is Assumed)
    return state - assumed, assumed


def distinct(states: Iterable[frozenset[Any]]) -> frozenset[frozenset[Any]]:
    """The paths on which something different has happened, each with what all of that kind have assumed."""
    found: dict[frozenset[Any], frozenset[Any]] = {}
    for state in states:
        happened, assumed = parted(state)
        before = found.get(happened)
        found[happened] = assumed if before is None else before & assumed
    if len(found) == 1:
        return frozenset(happened | assumed for happened, assumed in found.items())
    kept = list(found)
    if len(found) > MAX_PATHS:
        kept = sorted(found, key=lambda happened: (len(happened), sorted(map(repr, happened))))[-MAX_PATHS:]
    return frozenset(happened | found[happened] for happened in kept)


def join_all(values: Iterable[Value]) -> Value:
    """What is known of a value that may be any of these."""
    result: Any = MISSING
    for value in values:
        result = join(result, value)
    return unknown() if result is MISSING else result


def _numeric(value: Value) -> bool:
    return isinstance(value, Number) or (
        isinstance(value, Const) and isinstance(value.value, (int, float)) and not isinstance(value.value, bool)
    )


def _join_plain(one: Any, other: Any) -> Any:
    """Joins what stores hold besides values: dtype sets, flags, tuples of items, spots."""
    if one == other:
        return one
    if isinstance(one, frozenset) and isinstance(other, frozenset):
        return one | other
    if isinstance(one, tuple) and isinstance(other, tuple):
        return one + tuple(item for item in other if item not in one)
    if isinstance(one, Spot):
        return one
    if isinstance(other, Spot):
        return other
    return None


def join_tensors(one: Tensor, other: Tensor) -> Tensor:
    dtype = join_dtypes(one.dtype, other.dtype)
    return replace(
        one,
        dtype=dtype,
        marks=one.marks | other.marks,
        zero_dim=one.zero_dim and other.zero_dim,
        loops=one.loops if len(one.loops) <= len(other.loops) else other.loops,
        low_at=one.low_at or other.low_at,
        notes=joined(one.notes, other.notes, is_low(dtype)),
    )


def promote(tensors: list[Tensor]) -> Dtypes | None:
    """The dtypes that PyTorch's type promotion gives; 0-dim tensors do not widen one with dimensions.

    None where any dtype is unknown. Source: https://pytorch.org/docs/stable/tensor_attributes.html#type-promotion
    """
    if not tensors or any(t.dtype is None for t in tensors):
        return None
    shaped = [t for t in tensors if not t.zero_dim] or tensors
    flat = [t for t in tensors if t.zero_dim and t not in shaped]
    result: set[str] = {""}
    for tensor in shaped:
        assert tensor.dtype is not None
        result = {wider(a, b) for a in result for b in tensor.dtype}
    for tensor in flat:
        assert tensor.dtype is not None
        result = {a if a in FLOATING or b not in FLOATING else wider(a, b) for a in result for b in tensor.dtype}
    return frozenset(result)


_ORDER = ("bool", "uint8", "int8", "int16", "int32", "int64")


def wider(one: str, other: str) -> str:
    """The dtype of an operation on two shaped tensors of these dtypes."""
    if not one or one == other:
        return other
    if not other:
        return one
    a, b = FLOATING.get(one), FLOATING.get(other)
    if a and b:
        if a.bits == b.bits:
            return "float32"
        return one if a.bits > b.bits else other
    if a or b:
        return one if a else other
    if one in _ORDER and other in _ORDER:
        return max(one, other, key=_ORDER.index)
    return one


def truth(value: Value) -> bool | None:
    """Python's truth of a value, None where it is not known."""
    if isinstance(value, Const):
        return bool(value.value)
    if isinstance(value, Choice):
        found = {truth(option) for option in value.options}
        return found.pop() if len(found) == 1 else None
    if isinstance(value, Scaler):
        return True
    if isinstance(value, (Optimizer, Function, Class, DType, Device)):
        return True
    if isinstance(value, Instance) and not value.library:
        return True
    if isinstance(value, Seq) and not value.open:
        return bool(value.items)
    return None


def constant(value: Value | None) -> Any:
    """The Python constant behind a value, None where there is none."""
    return value.value if isinstance(value, Const) else None


def float_constant(value: Value | None) -> float | None:
    found = constant(value)
    try:
        return float(found) if isinstance(found, (int, float)) and not isinstance(found, bool) else None
    except OverflowError:
        return None
