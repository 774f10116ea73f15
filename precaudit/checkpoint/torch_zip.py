"""Reads what torch.save writes since torch 1.6: a zip archive with one pickle and one record per storage."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from precaudit.checkpoint import pickles
from precaudit.checkpoint.archive import Archive
from precaudit.checkpoint.leaves import ITEMSIZE, Leaf, Piece, Tensor, Unreadable, sizes, walk
from precaudit.checkpoint.pickles import Global, Made, Persistent
from precaudit.disk import opened

MAGIC = b"PK\x03\x04"
STORAGES: Mapping[str, str] = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128", "UntypedStorage": "uint8", "QUInt8Storage": "quint8",
    "QInt8Storage": "qint8", "QInt32Storage": "qint32", "QUInt4x2Storage": "uint8", "QUInt2x4Storage": "uint8",
}  # fmt: skip
INERT = frozenset(
    "collections.OrderedDict collections.defaultdict collections.Counter collections.deque torch.Size torch.device "
    "torch.serialization._get_layout numpy.dtype numpy.ndarray numpy.core.multiarray._reconstruct "
    "numpy._core.multiarray._reconstruct numpy.core.multiarray.scalar numpy._core.multiarray.scalar _codecs.encode "
    "builtins.set builtins.frozenset builtins.dict builtins.list builtins.bytearray builtins.slice builtins.complex "
    "builtins.range argparse.Namespace __builtin__.set __builtin__.dict copyreg._reconstructor "
    "torch.distributed.checkpoint.filesystem._StorageInfo "
    "deepspeed.utils.tensor_fragment.fragment_address".split()
)
INERT_MODULES = (
    "torch._utils", "torch._tensor", "torch.nn.parameter", "torch.nn.modules", "torch.optim.lr_scheduler",
    "torch.distributed.checkpoint.metadata", "torch.distributed.tensor", "torch.ao.nn", "pathlib", "datetime", "enum",
)  # fmt: skip
"""What puts a checkpoint together again and does no more; all else that a file calls is code of its own."""
FRAMEWORKS = frozenset(
    "torch transformers accelerate peft trl deepspeed lightning pytorch_lightning lightning_fabric torchao "
    "bitsandbytes torchmetrics".split()
)
"""Packages whose classes (`TrainingArguments`, `ZeroStageEnum`) stand in the checkpoints that they write.

Source: the globals that torch.load(weights_only=True) allows, https://docs.pytorch.org/docs/stable/notes/serialization.html"""


def inert(name: Global) -> bool:
    """Whether calling this when a checkpoint is loaded makes an object and nothing else."""
    if str(name) in INERT:
        return True
    # `pathlib` + `os.system` is a dotted name that leads out of the module.
    inside = any(name.module == module or name.module.startswith(f"{module}.") for module in INERT_MODULES)
    a_class = name.name.lstrip("_")[:1].isupper() and name.module.partition(".")[0] in FRAMEWORKS
    return (inside or a_class) and "." not in name.name


class Contents:
    """The leaves of one archive, and the code of its own that loading it with pickle would have run."""

    def __init__(self, leaves: list[Leaf], foreign: list[str]) -> None:
        self.leaves = leaves
        self.foreign = foreign


def read(file: Path) -> Contents:
    """Everything in the file. Raises Unreadable."""
    with opened(file) as source:
        return read_part(file, source)


def read_part(path: Path, file: BinaryIO, start: int = 0, length: int | None = None) -> Contents:
    """The same for an archive that stands inside a file."""
    archive = Archive(path, file, start, length)
    if "data.pkl" not in archive:
        raise Unreadable("it is a zip archive that torch.save did not write: it has no data.pkl")
    pickle = pickles.read(io.BytesIO(archive.read("data.pkl")))
    little = "byteorder" not in archive or archive.read("byteorder") != b"big"
    rebuilder = _Rebuilder(archive, path, little)
    value = rebuilder.rebuild(pickle.value)
    foreign = sorted({str(name) for name in (*pickle.called, *rebuilder.called) if not inert(name)})
    return Contents(list(walk(value)), foreign)


class _Rebuilder:
    """Turns what the pickle says into plain containers and Tensors."""

    def __init__(self, archive: Archive, path: Path, little: bool) -> None:
        self.archive, self.path, self.little = archive, path, little
        self.records: dict[str, Piece | None] = {}
        self.done: dict[int, Any] = {}
        self.alive: list[Any] = []
        """What `done` knows by its id, kept so that no id is given out again."""
        self.called: list[Global] = []
        """What torch's own rebuilding functions would call."""

    def rebuild(self, value: Any, depth: int = 0) -> Any:
        """Shared objects stay shared; an object that contains itself is left out where it comes round again."""
        if not isinstance(value, (dict, list, tuple, Made)) or isinstance(value, (Global, Persistent)):
            return value
        if id(value) in self.done:
            return self.done[id(value)]
        if depth > 200:
            raise Unreadable("its containers are nested more than 200 deep")
        self.done[id(value)] = None
        self.alive.append(value)
        made: Any
        if isinstance(value, dict):
            made = {_key(key): self.rebuild(item, depth + 1) for key, item in value.items()}
        elif isinstance(value, Made):
            made = self._made(value, depth)
        else:
            made = [self.rebuild(item, depth + 1) for item in value]
        self.done[id(value)] = made
        return made

    def _made(self, made: Made, depth: int) -> Any:
        name = str(made.callee) if isinstance(made.callee, Global) else ""
        rebuild = REBUILDERS.get(name)
        args = made.args if isinstance(made.args, (tuple, list)) else ()
        if rebuild is not None:
            try:
                return rebuild(self, args, depth)
            except (IndexError, TypeError, ValueError, AttributeError):
                raise Unreadable(f"its pickle describes a tensor wrongly ({name})") from None
        parts: dict[str, Any] = {}
        if made.items:
            parts |= {_key(key): self.rebuild(item, depth + 1) for key, item in made.items.items()}
        if made.members:
            return [self.rebuild(item, depth + 1) for item in made.members]
        for state in made.state if isinstance(made.state, tuple) else (made.state,):
            if isinstance(state, dict):
                inner = self.rebuild(state, depth + 1)
                # A module keeps its tensors under these; an ordered dict of them carries `_metadata`.
                for key, item in inner.items():
                    if key in ("_parameters", "_buffers", "_modules") and isinstance(item, dict):
                        parts |= item
                    elif key not in ("_metadata",):
                        parts[key] = item
        if not parts and len(args) == 1 and isinstance(args[0], (str, int, float)):
            return args[0]
        if not parts:
            inner_args = [self.rebuild(item, depth + 1) for item in args if isinstance(item, (dict, list, tuple, Made))]
            return inner_args[0] if len(inner_args) == 1 else inner_args or {}
        return parts

    def tensor(self, args: Any, depth: int) -> Any:
        """`_rebuild_tensor_v2(storage, offset, size, stride, …)`; v3 adds the dtype, for an untyped storage."""
        reference, offset, shape, stride = args[0], *sizes([args[1]]), _sizes(args[2]), _sizes(args[3])
        kind, key, numel = _storage(reference)
        dtype = _dtype(args[6]) if len(args) > 6 and _dtype(args[6]) else kind
        item = ITEMSIZE.get(dtype, 1)
        if key not in self.records:
            self.records[key] = self.archive.find(f"data/{key}")
        record = self.records[key]
        span = 1 + sum((n - 1) * abs(step) for n, step in zip(shape, stride, strict=True)) if math.prod(shape) else 0
        begin, length = int(offset * item), int(span * item)
        if record is not None and begin + length > record.length:
            raise Unreadable(f"its record data/{key} is shorter than the tensor that stands in it")
        pieces = (Piece(record.file, record.offset + begin, length),) if record is not None and self.little else ()
        size = record.length if record is not None else int(numel * item)
        return Tensor(dtype, shape, size, (self.path, key), pieces)

    def parameter(self, args: Any, depth: int) -> Any:
        """`_rebuild_parameter(data, …)`: the tensor itself."""
        return self.rebuild(args[0], depth + 1)

    def from_type(self, args: Any, depth: int) -> Any:
        """`_rebuild_from_type_v2(function, type, args, state)`: a subclass, or a tensor with attributes of its own."""
        inner = Made(args[0], args[2])
        self.called += [args[0]] if isinstance(args[0], Global) else []
        self.alive.append(inner)
        base = self.rebuild(inner, depth + 1)
        state = self.rebuild(args[3], depth + 1) if len(args) > 3 else None
        parts = {key: item for key, item in (state if isinstance(state, dict) else {}).items() if _holds_tensor(item)}
        return parts if parts else base

    def wrapper(self, args: Any, depth: int) -> Any:
        """`_rebuild_wrapper_subclass(class, dtype, size, …)`: its real tensors are in the state beside it."""
        return {}

    def meta(self, args: Any, depth: int) -> Any:
        """`_rebuild_meta_tensor_no_storage(dtype, size, …)`: a shape without content."""
        return Tensor(_dtype(args[0]) or "float32", _sizes(args[1]), 0)

    def nothing(self, args: Any, depth: int) -> Any:
        """Sizes, devices, layouts: no part of what a checkpoint keeps."""
        return {}


REBUILDERS: Mapping[str, Callable[[_Rebuilder, Any, int], Any]] = {
    "torch._utils._rebuild_tensor": _Rebuilder.tensor,
    "torch._utils._rebuild_tensor_v2": _Rebuilder.tensor,
    "torch._utils._rebuild_tensor_v3": _Rebuilder.tensor,
    "torch._utils._rebuild_qtensor": _Rebuilder.tensor,
    "torch._utils._rebuild_parameter": _Rebuilder.parameter,
    "torch._utils._rebuild_parameter_with_state": _Rebuilder.parameter,
    "torch._tensor._rebuild_from_type_v2": _Rebuilder.from_type,
    "torch._utils._rebuild_wrapper_subclass": _Rebuilder.wrapper,
    "torch._utils._rebuild_meta_tensor_no_storage": _Rebuilder.meta,
    "torch.device": _Rebuilder.nothing,
    "torch.serialization._get_layout": _Rebuilder.nothing,
}
"""torch's functions that make a tensor again. Source: torch/_utils.py, torch/_tensor.py."""


def _storage(reference: Any) -> tuple[str, str, int]:
    """dtype, key and elements of `("storage", torch.FloatStorage, "12", "cpu", 4096)`."""
    if not isinstance(reference, Persistent) or not isinstance(reference.key, tuple) or len(reference.key) < 5:
        raise ValueError("no storage")
    _, kind, key, _, numel = reference.key[:5]
    return STORAGES.get(kind.name, kind.name), str(key), sizes([numel])[0]


def _sizes(value: Any) -> tuple[int, ...]:
    if isinstance(value, Made):
        value = value.args[0] if value.args else ()
    return sizes(value)


def _dtype(value: Any) -> str:
    return value.name if isinstance(value, Global) and value.module == "torch" else ""


def _key(key: Any) -> Any:
    if isinstance(key, (str, int, float, bool)):
        return key
    if isinstance(key, tuple) and not isinstance(key, (Global, Persistent)):
        return ".".join(str(part) for part in key)
    return str(key) if isinstance(key, Global) else f"key {id(key)}"


def _holds_tensor(value: Any) -> bool:
    return any(isinstance(leaf.value, Tensor) for leaf in walk(value))
