"""What the code under check did with its optimizers and scalers, kept until the whole file has been run."""

from __future__ import annotations

from dataclasses import dataclass, field

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


@dataclass(eq=False)
class Training:
    """What the code under check did with its optimizers and scalers."""

    optimizers: list[Optimizer] = field(default_factory=list)
    custom: list[Instance] = field(default_factory=list)
    saw_scaler: bool = False
    outside_scaling: bool = False
    """The loss is scaled, or not, by a framework or by whoever calls this."""
    unscaled_backward: list[tuple[Spot, Spot | None]] = field(default_factory=list)
    scalers: list[Scaler] = field(default_factory=list)
    stepped_scalers: set[int] = field(default_factory=set)
    low_adapters: list[tuple[Spot, Spot | None]] = field(default_factory=list)
    regions_used: dict[int, Autocast] = field(default_factory=dict)
    built_by_default: list[tuple[Spot, Dtypes, Spot, Store]] = field(default_factory=list)
    """Where a low default dtype was set, that dtype, and the module that was built under it."""
    trained: bool = False
    """Whether anything is trained here: a backward pass, a trainer."""
    updated: bool = False
    """Whether weights are updated here: a step, gradients added to something."""
    untied: list[tuple[Store, Store, Spot, Dtypes | None]] = field(default_factory=list)
    """Tied parameters that a fresh one took the place of: their store, its store, where, its dtype."""
    hooked: bool = False
    """A hook takes gradients away as they are accumulated."""
    looped: bool = False
    """Whether a loss is sent backward in each turn of a loop."""
    begun: list[tuple[Value, Spot, bool]] = field(default_factory=list)
    """Values that a backward pass starts from, where, and whether they are losses of a loop's turns."""
    plain_backward: Spot | None = None
    """A backward pass from a loss that nothing scaled."""
    compute_dtypes: dict[int, tuple[Spot, str, Instance]] = field(default_factory=dict)
    """Identity of a config of 4-bit models -> where it was written, the dtype that they compute in, itself."""
    quantised: list[tuple[int, Store]] = field(default_factory=list)
    """Models that were loaded with such a config."""
    saved_models: list[Dtypes | None] = field(default_factory=list)
    """Dtypes of the models that were saved as checkpoints of their own; None where one is not known."""
    as_they_come: list[tuple[Store, Dtypes, Spot]] = field(default_factory=list)
    """Models that were loaded in their checkpoints' dtype, that dtype, where."""
    from_command_line: list[Spot] = field(default_factory=list)
    """Where TrainingArguments are read from the command line."""
    accelerators: list[tuple[Spot, str]] = field(default_factory=list)
    """Where an Accelerator is asked for a precision, and which."""
    frameworks: list[str] = field(default_factory=list)
    """Those that are used here, by the words of a rule's `fixes`."""
    quantised_bases: set[int] = field(default_factory=set)
    """Configs of models on which something is trained, or may be where the model is handed on to."""
    unprepared: list[tuple[Spot, Spot | None]] = field(default_factory=list)
    """Where adapters are put on a k-bit base that nothing prepared, and where that was loaded."""
    trainer_prepares: bool = False
    """A trainer that prepares k-bit models itself is built."""
    arguments: list[Instance] = field(default_factory=list)
    """The TrainingArguments of trainers that are built."""
    returned: list[tuple[Value, Spot]] = field(default_factory=list)
    """Losses that a framework starts the backward pass from, and where it gets them."""
    true_half: list[tuple[Spot, str, Store]] = field(default_factory=list)
    """Where a trainer or a Fabric is asked for parameters in 16 bits, which a script that only predicts may do."""
    precisions: list[Value] = field(default_factory=list)
    """What Lightning's trainers are asked for."""
    mixed: bool = False
    """A framework's trainer is built here that may put autocast around the training step."""

    @property
    def unscaled(self) -> bool:
        """Whether weights are updated here and nothing scales the loss, here or outside."""
        updated = self.updated or self.looped or self.custom
        return bool(updated) and not self.saw_scaler and not self.outside_scaling

    @property
    def in_earnest(self) -> bool:
        """Whether a training stands here, not only a backward pass as in the test of a kernel."""
        return bool(self.updated or self.saw_scaler or self.optimizers or self.custom or self.arguments)


def in_a_test(spot: Spot) -> bool:
    """Whether it stands in a function of pytest's or unittest's, or in what a class of tests calls."""
    return any(name.startswith(("test_", "_test_", "Test")) for name in spot.function.split("."))
