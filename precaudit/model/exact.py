"""The exact step, as rank files and reports carry it: what one step should have given, and where it lost what."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class ExactLine(BaseModel):
    """One quantity of the step, against what it would be in float64 from the same start."""

    model_config = ConfigDict(extra="ignore")

    what: str
    """"loss", "logits", "log-probabilities", "activation" of a module, "phases" of all sines and cosines,
    "before reduction" of all that this rank gave to be added up over ranks, "gradient" and "update" of a
    parameter, "gradient norm" of all of one optimizer, its "state"."""
    name: str = ""
    """The parameter's or the module's; of state also the optimizer's own name for it."""
    dtype: str = ""
    error: float | None = None
    """The norm of the error over the norm of the exact value; null where that is zero or not known."""
    absolute: float | None = None
    """The norm of the error; of log-probabilities its mean, in nats; of phases the largest, in radians."""
    size: float | None = None
    """The norm of the exact value."""
    partial: bool = False
    """Something that could not be followed went into it: errors count only from there on."""
    nil: bool = False
    """The parameter's exact gradient is zero: what is here is made of rounding alone."""
    split: dict[str, float] = {}
    """Where it was lost, as norms over that of the exact value: of a gradient in "forward", in "backward" and in the
    "reduction" over ranks; of an update and of state with the "gradient" or in the "optimizer", of which "write-back"
    is the last rounding."""


class ExactOperation(BaseModel):
    """What one operation on one line lost; of several times the worst."""

    model_config = ConfigDict(extra="ignore")

    path: str | None = None
    line: int | None = None
    module: str = ""
    operation: str
    dtype: str = ""
    phase: str = ""
    times: int = 1
    local: float = 0.0
    """Its own error: the result against the same operation in float64 on the same, rounded inputs."""
    error: float = 0.0
    """The error of its result, that of its inputs included."""
    amplification: float | None = None
    """How much larger it made the error of its inputs."""
    added: float = 0.0
    """What was lost here: its own error, or the whole error beyond its inputs' where it magnified that."""


class Effect(BaseModel):
    """What rounding the operands of matmuls does to the step."""

    model_config = ConfigDict(extra="ignore")

    format: str
    layer: str | None = None
    """The one whose matmuls are rounded; null for all."""
    loss: float | None = None
    """How far the loss is from the exact one, relative to it; null where it is not finite."""
    gradients: float | None = None
    """That of all gradients as one vector."""


class MatmulRow(BaseModel):
    """The operands of the matmuls of one layer in one format."""

    model_config = ConfigDict(extra="ignore")

    layer: str
    phase: str
    format: str
    times: int
    error: float | None = None
    """Of the worse operand, the norm of what rounding changes over its own."""
    result: float | None = None
    """Of what the matmul gives of the rounded operands: one matmul alone in this format."""
    flushed: float = 0.0
    """Share of the elements that become zero."""
    saturated: float = 0.0
    """Share that is beyond the largest number."""


class RoleRow(BaseModel):
    """The tensors of one role, held in another format."""

    model_config = ConfigDict(extra="ignore")

    role: str
    dtype: str
    bytes: int
    format: str
    saves: int
    error: float | None = None
    flushed: float = 0.0
    of_the_step: float | None = None
    """What rounding changes over what the step added: of what is carried on and added to. null for what is not."""


class WhatIf(BaseModel):
    """`precaudit whatif`: the exact step with rounded matmul operands."""

    model_config = ConfigDict(extra="ignore")

    stochastic: bool = False
    formats: list[Effect] = []
    layers: list[Effect] = []
    """Each layer alone in the first format, the worst first."""
    left_out: int = 0
    """Layers that were not tried alone."""
    matmuls: list[MatmulRow] = []
    roles: list[RoleRow] = []


class ExactScope(BaseModel):
    """The modules that were followed, where these are not all."""

    model_config = ConfigDict(extra="ignore")

    modules: list[str] = []
    """Their names, or the patterns that were given for them."""
    left_out: int = 0
    """Modules that would not have fitted into memory."""
    limit: int = 0
    """Bytes that were allowed; 0 for any."""


class ExactStep(BaseModel):
    """`precaudit trace --exact`: one step of one rank."""

    model_config = ConfigDict(extra="ignore")

    step: int
    rank: int = 0
    followed: float
    """The share of the floating numbers computed in it that were computed in float64 too."""
    not_followed: dict[str, int] = {}
    """Operation -> how often it could not be."""
    scope: ExactScope | None = None
    companions: int = 0
    """Bytes of all float64 numbers at their most, one beside the other."""
    budget: list[ExactLine] = []
    operations: list[ExactOperation] = []
    """Worst first, at most 20."""
    what_if: WhatIf | None = None
