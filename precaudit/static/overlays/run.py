"""One run of a file: what is known of its training, what is told of it, and where the interpreter stands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from precaudit.static.language.interpreter import Interpreter
from precaudit.static.language.questions import Library
from precaudit.static.language.values import Autocast, Dtypes, Spot, Tensor, Value
from precaudit.static.overlays.bus import Bus
from precaudit.static.overlays.facts import Facts
from precaudit.static.overlays.torch.training import Training


class Run:
    """Holds what is known of one file's training; `library` makes what answers the interpreter's questions."""

    def __init__(self, library: Callable[[Run], Library]) -> None:
        self.facts = Facts()
        self.bus = Bus()
        self.training = Training()
        self.interpreter: Interpreter = Interpreter(library(self))
        self.read_beside: Callable[[Any, str], bytes | None] = lambda source, name: None
        """source, relative path -> the content of a file near it, None where there is none."""
        self.structured: dict[str, Value] = {}
        """The configs that a script gives Hydra as classes, by group and name."""
        self._nodes: dict[int, Spot] = {}
        self.float16_region: Spot | None = None
        """The last region that ran something in float16."""
        self.loss_built: Spot | None = None
        """Where the loss module that is being called was built."""

    def spot(self, node: Any) -> Spot:
        return self.interpreter.spot(node)

    def argument_spot(self, node: Any, *names: str) -> Spot:
        """Where a call is given a keyword, the first of these names that it is given, or the call."""
        given = {arg.keyword.value: arg for arg in getattr(node, "args", ()) if arg.keyword is not None}
        return self.spot(next((given[name] for name in names if name in given), node))

    def remember(self, node: Any) -> None:
        """Keeps the place of a node that an event names by identity."""
        self._nodes.setdefault(id(node), self.spot(node))

    def known_spot(self, identity: int) -> Spot:
        return self._nodes[identity]

    def met(self, framework: str) -> None:
        """A framework is used here; its words are those of the fixes."""
        if framework not in self.training.frameworks:
            self.training.frameworks.append(framework)

    def grad(self) -> bool:
        return self.interpreter.grad_enabled()

    def loops(self) -> tuple[int, ...]:
        return self.interpreter.loops

    def autocast(self) -> Autocast | None:
        return self.interpreter.autocast()

    def disabled_region(self) -> Autocast | None:
        region = self.autocast()
        return region if region is not None and region.enabled is False else None

    def outside_region(self, tensor: Tensor, region: Autocast) -> bool:
        """Whether the tensor was not cast low on purpose inside the region."""
        return tensor.op not in ("cast", "parameter")

    def in_forward(self) -> bool:
        """Whether a forward method, or a function named for a norm, is being run."""
        names = {f.function.name.value for f in self.interpreter.frames if f.function is not None}
        return not names.isdisjoint(("forward", "__call__")) or any("norm" in name.lower() for name in names)

    def default_dtype(self) -> Dtypes | None:
        found: Dtypes | None = self.interpreter.world.get("default_dtype", frozenset({"float32"}))
        return found

    def in_a_test_alone(self) -> bool:
        """Whether a test runs what stands here, and trains nothing: with how many positions is its business."""
        frames = [frame.function for frame in self.interpreter.frames if frame.function is not None]
        return not self.training.in_earnest and any(function.name.value.startswith("test_") for function in frames)
