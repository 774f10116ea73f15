"""What a Fact of each Kind says beyond role and dtype: one typed class per Kind, with every key a witness may write.

Nothing of it runs. `tests/test_contract.py` holds the classes against the rules and against the code of the witnesses.
Standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypedDict

from precaudit.model.vocabulary import Kind


class Context(TypedDict, total=False):
    """How a Fact came about, for who reads the Facts of a report as JSON. Any Fact may say it."""

    optimizer: str
    """The class that holds or moves it; "hand-written" where the loop does."""
    device: str
    """The device's type: cpu, cuda."""
    frameworks: str
    """Those that the source uses, first the one in whose words to say what to do: "trl,trainer"."""
    autocast: str
    """The region it ran in."""
    only_on_cpu: bool
    """CUDA autocast works in float32 where CPU autocast does not."""
    level: Literal["graph"]
    """Read off a compiled region, whose operations are not seen one by one."""
    scale: float
    """The loss scale."""
    dynamic: bool
    """The loss scale adapts itself."""
    value: float
    """The literal, or eps."""
    operation: str
    """The aten name of the first operation that gave NaN or inf."""
    direction: Literal["forward", "backward", "after backward", "optimizer"]
    """When that operation ran."""
    ranks: str
    """Those that differ from the others."""


class Holds(TypedDict, total=False):
    """`role` held or was computed in `dtype`."""

    what: Literal["hyperparameter", "moment", "ema", "metric", "value", "buffer", "running"]
    """A hyperparameter held as a tensor, state of an optimizer, averaged weights, a running sum of the loss or of
    anything, an own buffer of gradients."""
    key: str
    """The hyperparameter's name: step, beta2, lr, decay."""
    allowed_because: Literal["adapter-only", "block-wise", "float32-master", "kahan", "stochastic-rounding"]
    """Why a low dtype does no harm here."""
    adapter_only: bool
    """Only adapters are trained."""
    own: bool
    """The optimizer is the script's own, which says itself what its state is."""
    loss_scaling: Literal["none", "scaled"]
    """Whether the loss behind these gradients was scaled."""
    underflow: bool
    """More than a bearable share of the gradients is below the dtype's smallest normal number."""
    hand_written: bool
    """A normalisation in the user's own code: library kernels work in float32 inside."""
    feeds: Literal["loss", "topk", "multinomial", "log"]
    """What reads a softmax."""
    pattern: Literal["running", "near-overflow"]
    """A reduction stored again at every element; one that comes near float16's 65504."""
    representable: bool
    """Whether the dtype holds these positions exactly."""
    chosen: Literal["explicit", "framework", "default", "checkpoint"]
    """Who chose the dtype: the user's own line, a framework's setting, nobody, a checkpoint that is not at hand."""
    by: Literal["buffer_dtype", "cross_entropy", "dtensor", "hook"]
    """The setting of FSDP1 that cast running statistics; the function around a softmax; DDP's communication hook."""
    single: bool
    """Each row's own loss is used, and not only their mean: cross_entropy(reduction="none")."""
    trainer_fp16: bool
    """The model was given to Trainer(fp16=True)."""
    swapped: bool
    """The adapters are frozen and the base is trained."""


class Clip(TypedDict, total=False):
    """Gradients were clipped."""

    scaled: bool
    """They were still multiplied by the loss scale."""


class OptimizerStep(TypedDict, total=False):
    """An optimizer stepped."""

    gradients: Literal["scaled", "unscaled"]
    """Whether the gradients were still multiplied by the loss scale."""
    autocast: bool
    """An autocast region was open."""


class Backward(TypedDict, total=False):
    """Backward ran."""

    autocast: bool
    """An autocast region was open."""


class ScalerStep(TypedDict, total=False):
    """scaler.step ran."""

    update: Literal["missing"]
    """No scaler.update followed."""


class ScalerCall(TypedDict, total=False):
    """A GradScaler method was called out of order."""

    misuse: Literal[
        "update-per-optimizer", "backward-after-unscale", "unscale-twice", "update-without-step", "step-beside-scaler",
        "partly-scaled",
    ]  # fmt: skip
    raises: bool
    """torch raises there: the program does not go on with wrong gradients."""


class LossScaling(TypedDict, total=False):
    """The loss was scaled, or should have been."""

    needed: bool
    """Whether any gradient is float16."""
    extreme: bool
    """The scale is fixed, or out of bounds."""
    sharded_without_scaler: bool
    """float16 gradients are sharded and each rank has a loss scale of its own, or none."""


class SkippedSteps(TypedDict, total=False):
    """Optimizer steps were skipped for inf or nan."""

    reason: Literal["consecutive", "scale-too-large", "scale-below-one"]


class NonFinite(TypedDict, total=False):
    """A `role` was NaN or inf."""

    what: Literal["loss", "gradient", "parameter", "optimizer state"]
    value: Literal["nan", "inf"]
    follows: bool
    """Something worse is told of in the same step."""
    given: bool
    """It was there before the first operation that met it: in the data, or in a parameter."""


class Eps(TypedDict, total=False):
    """An optimizer's eps in its state's dtype."""

    rounds_to: Literal["zero", "subnormal"]


class Constant(TypedDict, total=False):
    """A literal in a tensor's dtype."""

    overflows: bool
    rounds_to: Literal["zero"]
    feeds: Literal["log", "div", "rsqrt"]
    """The function that the literal guards."""


class Overflow(TypedDict, total=False):
    """A float16 intermediate near or past 65504."""

    inf_seen: bool


class Cast(TypedDict, total=False):
    """Parameters or activations were cast to `dtype`."""

    after_optimizer: bool
    """The optimizer had been built over the parameters."""
    under_autocast: bool
    unties: bool
    """Tied weights are two tensors from here on."""


class Hollow(TypedDict, total=False):
    """float32 tensors whose content is bfloat16 or float16."""

    after_step: bool
    """An applied step left them so."""
    restored: bool
    """Optimizer state with step > 0 stands beside them."""
    checkpoint: bool
    """They are tensors in a file."""
    content: Literal["bfloat16", "float16"]
    """The dtype whose values they hold."""


class Autocast(TypedDict, total=False):
    """An autocast region in `dtype`."""

    enabled: bool
    upcast: bool
    """Whether what is low goes up at the region's entry."""
    dtype_given: bool
    """False of a region that names none and falls to another than the run declares."""
    stale_cache: bool
    """Its cached cast of a weight is older than the weight, or has no gradient."""
    prefer: Literal["bfloat16"]
    trains_ratio: bool
    """A ratio of probabilities is trained, exp(new - old): three more bits of the mantissa matter there."""


class Op(TypedDict, total=False):
    """An operation on `dtype`."""

    op: str
    """PyTorch's name, or what was recognised: gradient-penalty-scaled, log-softmax-by-hand, log1p-exp, log-sum-exp,
    log-sigmoid-by-hand, bce-on-probabilities, no-promotion, low-precision-sampling, low-precision-target,
    low-precision-router, promotion-by-parameter, float32-matmul-under-mixed-precision, cancellation,
    low-precision-metric, rounded-log-probabilities."""
    under_autocast: bool
    cancels: Literal["variance", "distance"]
    """What is left of two values that nearly cancel."""


class Checkpoint(TypedDict, total=False):
    """A checkpoint was written or read."""

    saves_optimizer: bool
    saves_scaler: bool
    low: bool
    """Masters or optimizer state are in `dtype`."""
    trained_low: bool
    """The weights were low in training already, by the optimizer state beside them."""
    values: Literal["negative", "apart", "initial"]
    """What is wrong with what tensors hold: second moments below zero, masters that are not what their weights were
    rounded from, weights that stand where they began."""
    content: Literal["bfloat16", "float16"]
    """The only values that float32 weights hold."""


class Call(TypedDict, total=False):
    """An API was used, or left out."""

    api: str
    """Its dotted name, reduced-precision-flag, or tf32-set-twice."""
    deprecated: bool
    decorated: bool
    """An autograd.Function has custom_fwd and custom_bwd."""
    called: bool


class Config(TypedDict, total=False):
    """A setting was read."""

    key: str
    """Its name in the file or call."""
    many_micro_batches: bool
    """The gradients of several are summed."""
    conflict: bool
    """It excludes another setting."""
    mismatch: bool
    """The script asks for something else."""
    precision: Literal["16-true", "bf16-true", "half-call"]
    """A trainer's, or the model's own call of half()."""


class Declared(TypedDict, total=False):
    """`dtype` was declared for `role`; for quantized_storage the dtype it computes in."""

    actual: str
    """The dtype that ran."""
    relation: Literal["lower", "higher", "substitute"]
    """What ran against what was declared."""
    chosen: Literal["explicit", "framework", "default"]
    loss_scaling: Literal["none", "scaled"]


class Suppression(TypedDict, total=False):
    """An ignore comment."""

    used: bool
    """It silenced something."""
    names_rule: bool
    expired: bool
    """The day until which something was allowed is over."""


class Nothing(TypedDict):
    """The Kind says all."""


ATTRIBUTES: Mapping[Kind, type] = {
    Kind.HOLDS: Holds,
    Kind.CLIP: Clip,
    Kind.OPTIMIZER_STEP: OptimizerStep,
    Kind.BACKWARD: Backward,
    Kind.SCALER_STEP: ScalerStep,
    Kind.SCALER_CALL: ScalerCall,
    Kind.LOSS_SCALING: LossScaling,
    Kind.UNSCALE: Nothing,
    Kind.SKIPPED_STEPS: SkippedSteps,
    Kind.NON_FINITE: NonFinite,
    Kind.EPS: Eps,
    Kind.CONSTANT: Constant,
    Kind.OVERFLOW: Overflow,
    Kind.CAST: Cast,
    Kind.DEFAULT_DTYPE: Nothing,
    Kind.HOLLOW: Hollow,
    Kind.AUTOCAST: Autocast,
    Kind.OP: Op,
    Kind.CHECKPOINT: Checkpoint,
    Kind.CALL: Call,
    Kind.CONFIG: Config,
    Kind.DECLARED: Declared,
    Kind.RANKS_DIFFER: Nothing,
    Kind.SUPPRESSION: Suppression,
}
"""Kind -> its attributes."""
