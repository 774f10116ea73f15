"""What names a device outside of a tensor's making: torch.load's map_location, generators, legacy tensor types."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from .patches import Patches
from .placement import MARK, Current, on_device

LEGACY = {
    "FloatTensor": torch.float32,
    "DoubleTensor": torch.float64,
    "HalfTensor": torch.float16,
    "BFloat16Tensor": torch.bfloat16,
    "LongTensor": torch.int64,
    "IntTensor": torch.int32,
    "ShortTensor": torch.int16,
    "ByteTensor": torch.uint8,
    "BoolTensor": torch.bool,
}
"""Classes of torch.cuda -> the dtype of what they make."""


def install(patches: Patches, current: Current) -> None:
    """Lets files be loaded onto the device, and generators and legacy tensors be made there."""
    patches.wrap(torch, "load", _load)
    patches.set(torch, "Generator", _generator(current))
    for name, dtype in LEGACY.items():
        patches.set(torch.cuda, name, _legacy(dtype))
    patches.wrap(torch, "set_default_tensor_type", _default_type)


def _load(real: Any) -> Any:
    def load(file: Any, map_location: Any = None, *args: Any, **kwargs: Any) -> Any:
        if on_device(map_location):
            index = map_location if isinstance(map_location, int) else torch.device(map_location).index or 0

            def place(storage: Any, location: str) -> Any:
                with contextlib.suppress(AttributeError):
                    setattr(storage, MARK, index)
                return storage

            return real(file, place, *args, **kwargs)
        if isinstance(map_location, dict):
            map_location = {one: "cpu" if on_device(other) else other for one, other in map_location.items()}
        return real(file, map_location, *args, **kwargs)

    return load


def _generator(current: Current) -> type:
    """torch.Generator, that of a device being one of the CPU's."""
    real: Any = torch.Generator

    class Placed(real):  # type: ignore[misc]
        """A generator that says the device it was made for."""

        @property
        def device(self) -> torch.device:
            place: torch.device = self._place
            return place

    class Kind(type):
        def __instancecheck__(cls, value: Any) -> bool:
            return isinstance(value, real)

    class Generator(metaclass=Kind):
        """Draws the CPU's numbers for a device."""

        def __new__(cls, device: Any = "cpu") -> Any:
            if not on_device(device):
                return real(device)
            made = Placed("cpu")
            made._place = current.full(device)
            return made

    return Generator


def _legacy(dtype: torch.dtype) -> type:
    """torch.cuda.FloatTensor and its kin: makes a tensor, and says whether one is such."""

    class Kind(type):
        def __instancecheck__(cls, value: Any) -> bool:
            return isinstance(value, torch.Tensor) and value.is_cuda and value.dtype is dtype

    class Legacy(metaclass=Kind):
        """Makes an empty tensor of a size, or one of a list."""

        def __new__(cls, *args: Any) -> Any:
            if len(args) == 1 and not isinstance(args[0], int):
                return torch.tensor(args[0], dtype=dtype, device="cuda")
            return torch.empty(args, dtype=dtype, device="cuda")

    return Legacy


def _default_type(real: Any) -> Any:
    def set_default_tensor_type(kind: Any) -> None:
        name = kind if isinstance(kind, str) else next((n for n in LEGACY if vars(torch.cuda).get(n) is kind), None)
        if isinstance(name, str) and (name.startswith("torch.cuda.") or not isinstance(kind, str)):
            torch.set_default_dtype(LEGACY[name.rpartition(".")[2]])
            torch.set_default_device("cuda")
        else:
            real(kind)

    return set_default_tensor_type
