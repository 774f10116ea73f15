"""The Hugging Face Trainer: the precision that TrainingArguments ask for, and where they were written."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor

from ...model.vocabulary import Role, Site
from ..guard import Guard
from ..patching import patch
from ..process.ledger import Observation
from ..sites import user_site
from ..trackers.claims import Declaration
from . import Framework, imported


class HuggingFaceTrainer(Framework):
    """bf16=True and fp16=True mean autocast around float32 parameters; nothing in Trainer checks what it was given."""

    title = "Trainer"
    order = 40
    classes = ("transformers.trainer",)
    awaits = ("transformers.training_args",)

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._trainers: weakref.WeakSet[Any] = weakref.WeakSet()
        self._written: dict[int, tuple[weakref.ref[Any], Site | None]] = {}
        """id of a TrainingArguments, which cannot be hashed -> itself, and the user's line that made it."""

    def install(self) -> Iterable[Callable[[], None]]:
        # Not __init__: each subclass, such as SFTConfig, is a dataclass with an __init__ of its own.
        arguments = imported("transformers.training_args", "TrainingArguments")
        return [patch(kind, "__post_init__", self._around_post_init) for kind in arguments]

    def _around_post_init(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def __post_init__(arguments: Any) -> None:
            self._guard("TrainingArguments", self._written_here, arguments)
            original(arguments)

        return __post_init__

    def _written_here(self, arguments: Any) -> None:
        self._written[id(arguments)] = (weakref.ref(arguments), user_site())

    def meet(self, made: Any, site: Site | None) -> None:
        if hasattr(made, "args"):
            self._trainers.add(made)

    def declares(self) -> Iterable[Declaration]:
        for trainer in self._trainers:
            arguments = trainer.args
            ref, site = self._written.get(id(arguments), (None, None))
            for word, dtype in (("bf16", "bfloat16"), ("fp16", "float16")):
                if getattr(arguments, word, False):
                    by = f"{type(arguments).__name__}({word}=True)"
                    written = site if ref and ref() is arguments else None
                    yield Declaration(Role.MATMUL_COMPUTE, dtype, by, written, autocast=True)

    def describe(self, seen: Observation, tensors: Sequence[Tensor]) -> None:
        if seen.dtype == "float16" and any(getattr(trainer.args, "fp16", False) for trainer in self._trainers):
            seen.attrs["trainer_fp16"] = True
