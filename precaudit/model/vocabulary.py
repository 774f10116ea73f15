"""Roles, dtypes and Facts: the words in which both witnesses report and the judge decides.

Standard library only: this module also runs inside the traced command, whose environment may hold nothing of ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any, NamedTuple

Scalar = str | bool | int | float


class Role(str, Enum):
    """What a tensor is for in training. One member per row of the rule table; the value is the word used everywhere."""

    OPTIMIZER_STATE = "optimizer_state"
    """What an optimizer carries from step to step: exp_avg, exp_avg_sq, square_avg, momentum_buffer, step."""
    MASTER_WEIGHT = "master_weight"
    """The tensor the optimizer adds its update to."""
    LOSS = "loss"
    """What backward starts from, before any loss scaling."""
    LOSS_SCALE = "loss_scale"
    """GradScaler's scale and its kin."""
    NORM_RUNNING_STATISTICS = "norm_running_statistics"
    """BatchNorm's running_mean and running_var."""
    NORM_COMPUTATION = "norm_computation"
    """The statistics inside a normalisation layer, a hand-written one too."""
    SOFTMAX = "softmax"
    """softmax, log_softmax and cross-entropy inputs."""
    REDUCTION = "reduction"
    """A sum, mean or running value over many elements."""
    GRADIENT = "gradient"
    """What backward produces, in activations and in `.grad`."""
    GRADIENT_ACCUMULATION = "gradient_accumulation"
    """`.grad` or an own buffer, summed over several micro-batches."""
    GRADIENT_NORM = "gradient_norm"
    """The norm that clipping compares."""
    GRADIENT_REDUCTION = "gradient_reduction"
    """Gradients inside an all-reduce or reduce-scatter."""
    FORWARD_WEIGHT = "forward_weight"
    """A weight as the forward pass reads it: autocast's cast, a low copy of a float32 master."""
    ACTIVATION = "activation"
    """A differentiable value of the forward pass."""
    MATMUL_COMPUTE = "matmul_compute"
    """The operands of matmuls, convolutions and attention."""
    ADAPTER_PARAMETER = "adapter_parameter"
    """A LoRA or adapter weight beside a frozen base."""
    QUANTIZED_STORAGE = "quantized_storage"
    """A weight stored in 4 or 8 bits and de-quantised for compute."""
    ACCUMULATOR = "accumulator"
    """Any other long-lived value updated from itself: EMA weights, running loss, counters, own statistics."""
    POSITIONS = "positions"
    """Positions, indices, counts, rotary or timestep frequencies, noise schedules."""


class Kind(str, Enum):
    """What a Fact tells: that a role held a dtype, or that something happened. Rules choose by it.

    What else a Fact of each kind may say stands in `attributes.py`.
    """

    HOLDS = "holds"
    """`role` held or was computed in `dtype`."""
    CLIP = "clip"
    """Gradients were clipped."""
    OPTIMIZER_STEP = "optimizer_step"
    """An optimizer stepped."""
    BACKWARD = "backward"
    """Backward ran."""
    SCALER_STEP = "scaler_step"
    """scaler.step ran."""
    SCALER_CALL = "scaler_call"
    """A GradScaler method was called out of order."""
    LOSS_SCALING = "loss_scaling"
    """The loss was scaled, or should have been."""
    UNSCALE = "unscale"
    """Gradients were unscaled; dtype is theirs."""
    SKIPPED_STEPS = "skipped_steps"
    """Optimizer steps were skipped for inf or nan."""
    NON_FINITE = "non_finite"
    """A `role` was NaN or inf."""
    EPS = "eps"
    """An optimizer's eps in its state's dtype."""
    CONSTANT = "constant"
    """A literal in a tensor's dtype."""
    OVERFLOW = "overflow"
    """A float16 intermediate near or past 65504."""
    CAST = "cast"
    """Parameters or activations were cast to `dtype`."""
    DEFAULT_DTYPE = "default_dtype"
    """torch's default dtype while a model or an optimizer was built."""
    HOLLOW = "hollow"
    """float32 tensors whose content is bfloat16."""
    AUTOCAST = "autocast"
    """An autocast region in `dtype`."""
    OP = "op"
    """An operation on `dtype`."""
    CHECKPOINT = "checkpoint"
    """A checkpoint was written or read."""
    CALL = "call"
    """An API was used, or left out."""
    CONFIG = "config"
    """A setting was read."""
    DECLARED = "declared"
    """`dtype` was declared for `role`; for quantized_storage the dtype it computes in."""
    RANKS_DIFFER = "ranks_differ"
    """The same role differs between ranks."""
    SUPPRESSION = "suppression"
    """An ignore comment."""


class Site(NamedTuple):
    """A place in the user's own source. Lines and columns count from 1; 0 means not known."""

    path: str
    line: int
    column: int = 0
    end_line: int = 0
    end_column: int = 0
    function: str = ""
    library: str = ""
    """The library's own line below the user's, where the thing happened there: "transformers/trainer.py:1271"."""


class Cause(NamedTuple):
    """The earlier line that made a Fact so, and what it did: "parameters were cast to bfloat16"."""

    text: str
    site: Site | None


class Part(NamedTuple):
    """Some of the tensors that a Fact speaks of, and what was measured of them alone."""

    name: str
    """A parameter's name, or the pattern of several: `blocks.*.norm.weight`."""
    tensors: int
    evidence: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing a witness saw: this role held this dtype, here, in this context; counted, never logged per event."""

    kind: Kind
    dtype: str = ""
    role: Role | None = None
    site: Site | None = None
    cause: Cause | None = None
    module: str = ""
    """Fully qualified module or parameter name (fqn), or a pattern such as `layers.*.attn`."""
    detail: str = ""
    """What exactly, for the reader: "AdamW exp_avg, exp_avg_sq of 398/398 parameters"."""
    count: int = 1
    """Tensors or operations that share this Fact."""
    bytes: int = 0
    attrs: Mapping[str, Scalar] = field(default_factory=dict)
    evidence: Mapping[str, float] = field(default_factory=dict)
    """Measured numbers by name, ratios in 0..1 unless the name says otherwise."""
    parts: tuple[Part, ...] = ()
    """The tensors it is worst for, worst first; a few rows."""

    def as_json(self) -> dict[str, Any]:
        """The Fact as plain JSON values; `fact_from_json` reads it back."""
        raw = asdict(self)
        raw["kind"] = self.kind.value
        raw["role"] = self.role.value if self.role else None
        raw["attrs"] = dict(self.attrs)
        raw["evidence"] = dict(self.evidence)
        raw["parts"] = [part._asdict() for part in self.parts]
        raw["site"] = list(self.site) if self.site else None
        raw["cause"] = [self.cause.text, list(self.cause.site) if self.cause.site else None] if self.cause else None
        return raw


def fact_from_json(raw: Mapping[str, Any]) -> Fact:
    """Reads what `Fact.as_json` wrote. Raises KeyError, TypeError or ValueError where it is not that."""
    cause = raw.get("cause")
    _must_be(str, raw.get("dtype", ""), raw.get("module", ""), raw.get("detail", ""), *(cause[:1] if cause else ()))
    _must_be(int, raw.get("count", 1), raw.get("bytes", 0))
    _must_be((int, float), *raw.get("evidence", {}).values())
    _must_be((str, int, float, type(None)), *raw.get("attrs", {}).values())
    return Fact(
        kind=Kind(raw["kind"]),
        dtype=raw.get("dtype", ""),
        role=Role(raw["role"]) if raw.get("role") else None,
        site=_site(raw["site"]) if raw.get("site") else None,
        cause=Cause(cause[0], _site(cause[1]) if cause[1] else None) if cause else None,
        module=raw.get("module", ""),
        detail=raw.get("detail", ""),
        count=raw.get("count", 1),
        bytes=raw.get("bytes", 0),
        attrs=dict(raw.get("attrs", {})),
        evidence=dict(raw.get("evidence", {})),
        parts=tuple(Part(**part) for part in raw.get("parts", ())),
    )


def _site(raw: Sequence[Any]) -> Site:
    site = Site(*raw)
    _must_be(str, site.path, site.function, site.library)
    _must_be(int, *site[1:5])
    return site


def _must_be(kinds: Any, *values: object) -> None:
    """Raises TypeError for a value that is of none of these types: a rank file may come from anywhere."""
    for value in values:
        if not isinstance(value, kinds):
            raise TypeError(f"{value!r:.60} is not of the type that a Fact has there")


class DtypeFacts(NamedTuple):
    """What one floating dtype can hold. Source: torch.finfo, and the IEEE 754 / bfloat16 formats."""

    bits: int
    mantissa_bits: int
    max: float
    smallest_normal: float
    smallest_subnormal: float
    max_exact_integer: int
    """Every integer up to this one is representable; the next one is not."""


FLOATING: Mapping[str, DtypeFacts] = {
    "float64": DtypeFacts(64, 52, 1.7976931348623157e308, 2.0**-1022, 2.0**-1074, 2**53),
    "float32": DtypeFacts(32, 23, 3.4028234663852886e38, 2.0**-126, 2.0**-149, 2**24),
    "bfloat16": DtypeFacts(16, 7, 3.3895313892515355e38, 2.0**-126, 2.0**-133, 256),
    "float16": DtypeFacts(16, 10, 65504.0, 2.0**-14, 2.0**-24, 2048),
    "float8_e4m3fn": DtypeFacts(8, 3, 448.0, 2.0**-6, 2.0**-9, 16),
    "float8_e5m2": DtypeFacts(8, 2, 57344.0, 2.0**-14, 2.0**-16, 8),
}

LOW = frozenset(name for name, facts in FLOATING.items() if facts.bits < 32)
"""The dtypes the rule table calls low precision."""


def rounds_to(value: float, dtype: str) -> str:
    """How a literal survives in a dtype: "zero", "subnormal", "inf" or "itself" (rounded, but normal)."""
    facts = FLOATING[dtype]
    size = abs(value)
    if size == 0.0 or size == float("inf") or size != size:
        return "itself"
    half_step_above_max = facts.max * (1 + 2.0 ** -(facts.mantissa_bits + 2))
    if size >= half_step_above_max:
        return "inf"
    if size <= facts.smallest_subnormal / 2:
        return "zero"
    return "subnormal" if size < facts.smallest_normal else "itself"
