"""What the code under check did with its optimizers and scalers, kept until the whole file has been run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from precaudit.static.language import conditions
from precaudit.static.language.heap import Store
from precaudit.static.language.values import (
    Autocast,
    Dtypes,
    Instance,
    Optimizer,
    Scaler,
    Spot,
    Value,
)

if TYPE_CHECKING:
    from precaudit.static.overlays.torch_model import Torch

State = frozenset[Any]


class Training:
    """What the code under check did with its optimizers and scalers."""

    def __init__(self) -> None:
        self.optimizers: list[Optimizer] = []
        self.custom: list[Instance] = []
        self.saw_scaler = False
        self.unscaled_backward: list[tuple[Spot, Spot | None]] = []
        self.scalers: list[Scaler] = []
        self.enabled_if: dict[int, conditions.Condition] = {}
        """By the identity of a scaler's store: the condition that it was given as `enabled`."""
        self.losses: dict[int, set[str]] = {}
        self.updates: set[int] = set()
        self.never_updated: list[tuple[int, Spot]] = []
        self.stepped_scalers: set[int] = set()
        self.cleared = False
        self.regions: list[Autocast] = []
        self.low_adapters: list[tuple[Spot, Spot | None]] = []
        self.regions_used: dict[int, Autocast] = {}
        self.summed: list[tuple[Spot, Dtypes]] = []
        self.built_by_default: list[tuple[Spot, Dtypes, Spot, Store]] = []
        """Where a low default dtype was set, that dtype, and the module that was built under it."""
        self.trained = False
        """Whether anything is trained here: a backward pass, a trainer."""
        self.updated = False
        """Whether weights are updated here: a step, gradients added to something."""
        self.untied: list[tuple[Store, Store, Spot, Dtypes | None]] = []
        """Tied parameters that a fresh one took the place of: their store, its store, where, its dtype."""
        self.hooked = False
        """A hook takes gradients away as they are accumulated."""
        self.looped = False
        """Whether a loss is sent backward in each turn of a loop."""
        self.begun: list[tuple[Value, Spot, bool]] = []
        """Values that a backward pass starts from, where, and whether they are losses of a loop's turns."""
        self.plain_backward: Spot | None = None
        """A backward pass from a loss that nothing scaled."""
        self.sharded_float16: list[tuple[Spot, bool]] = []
        """Where float16 is sharded, and whether by FSDP1."""
        self.policies: list[tuple[Instance, list[Value], dict[str, Value]]] = []
        """FSDP's mixed-precision policies, and what they are made from."""
        self.policies_used: set[int | None] = set()
        """Those that models are sharded with; None where that is not known."""
        self.compute_dtypes: dict[int, tuple[Spot, str, Instance]] = {}
        """Identity of a config of 4-bit models -> where it was written, the dtype that they compute in, itself."""
        self.quantised: list[tuple[int, Store]] = []
        """Models that were loaded with such a config."""
        self.saved_models: list[Dtypes | None] = []
        """Dtypes of the models that were saved as checkpoints of their own; None where one is not known."""
        self.as_they_come: list[tuple[Store, Dtypes, Spot]] = []
        """Models that were loaded in their checkpoints' dtype, that dtype, where."""
        self.from_command_line: list[Spot] = []
        """Where TrainingArguments are read from the command line."""
        self.accelerators: list[tuple[Spot, str]] = []
        """Where an Accelerator is asked for a precision, and which."""
        self.frameworks: list[str] = []
        """Those that are used here, by the words of a rule's `fixes`."""
        self.quantised_bases: set[int] = set()
        """Configs of models on which something is trained, or may be where the model is handed on to."""
        self.unprepared: list[tuple[Spot, Spot | None]] = []
        """Where adapters are put on a k-bit base that nothing prepared, and where that was loaded."""
        self.trainer_prepares = False
        """A trainer that prepares k-bit models itself is built."""
        self.arguments: list[Instance] = []
        """The TrainingArguments of trainers that are built."""
        self.returned: list[tuple[Value, Spot]] = []
        """Losses that a framework starts the backward pass from, and where it gets them."""
        self.true_half: list[tuple[Spot, str, Store]] = []
        """Where a trainer or a Fabric is asked for parameters in 16 bits, which a script that only predicts may do."""
        self.precisions: list[Value] = []
        """What Lightning's trainers are asked for."""
        self.mixed = False
        """A framework's trainer is built here that may put autocast around the training step."""
        self.flags: dict[str, Spot] = {}
        """Backend flags that are set, as `matmul.allow_tf32`."""
        self.penalty: Spot | None = None
        """Where gradients of a scaled value were taken, to be differentiated again."""

    @property
    def in_earnest(self) -> bool:
        """Whether a training stands here, not only a backward pass as in the test of a kernel."""
        return bool(self.updated or self.saw_scaler or self.optimizers or self.custom or self.arguments)


def in_a_test(spot: Spot) -> bool:
    """Whether it stands in a function of pytest's or unittest's."""
    return spot.function.rpartition(".")[2].startswith("test_")


def pending(torch: Torch, state: State) -> set[int]:
    """The scalers whose scaled gradients wait for a step on this path, without those that are switched off there."""
    keys = {event[1] for event in state if event[0] == "pending"}
    asked = {key: torch.training.enabled_if[key] for key in keys if key in torch.training.enabled_if}
    assumed = conditions.assumptions(state) if asked else {}
    return keys - {key for key, condition in asked.items() if conditions.known(condition, assumed) is False}


def in_a_test_alone(torch: Torch) -> bool:
    """Whether a test runs what stands here, and trains nothing: with how many positions is its business."""
    frames = [frame.function for frame in torch.interpreter.frames if frame.function is not None]
    return not torch.training.in_earnest and any(function.name.value.startswith("test_") for function in frames)


def has(state: State, kind: str) -> bool:
    return any(event[0] == kind for event in state)


def update(torch: Torch, change: Any) -> None:
    torch.interpreter.set_paths(change(state) for state in torch.interpreter.paths)
