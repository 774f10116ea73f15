"""bitsandbytes: quantised bases and the dtype they compute in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from precaudit.model.vocabulary import Kind, Role
from precaudit.static.language.heap import Store
from precaudit.static.language.values import Instance, Opaque, Param, Ref, Value, constant
from precaudit.static.overlays import Call
from precaudit.static.overlays.torch import operands

if TYPE_CHECKING:
    from precaudit.static.overlays.run import Run


def config(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`BitsAndBytesConfig(...)`: 4-bit storage computes in float32 unless told otherwise."""
    bits = 4 if constant(kwargs.get("load_in_4bit")) else 8 if constant(kwargs.get("load_in_8bit")) else 0
    made = Instance(Ref("transformers.BitsAndBytesConfig"), {"\0bits": bits})
    if "\0rest" not in kwargs and bits == 4:
        given = kwargs.get("bnb_4bit_compute_dtype")
        wanted = operands.dtype_argument(run, given)
        dtype = operands.names(wanted) if wanted is not None else frozenset({"float32"}) if given is None else None
        if dtype is not None and len(dtype) == 1:
            run.training.compute_dtypes[id(made.store)] = (
                run.argument_spot(node, "bnb_4bit_compute_dtype"), min(dtype), made,
            )  # fmt: skip
    return made


def loaded(run: Run, kwargs: dict[str, Value], into: Store) -> None:
    """A model is loaded with a config of quantisation."""
    given = kwargs.get("quantization_config")
    if isinstance(given, Instance) and id(given.store) in run.training.compute_dtypes:
        into["\0quant"] = id(given.store)
        run.training.quantised.append((id(given.store), into))


def learns(run: Run, model: Value) -> None:
    """Something is trained on top of this model."""
    if isinstance(model, Opaque) and "\0quant" in model.store:
        run.training.quantised_bases.add(model.store["\0quant"])


def is_kbit(kwargs: dict[str, Value]) -> bool:
    """Whether these arguments of from_pretrained load a k-bit model for certain."""
    given = kwargs.get("quantization_config")
    if isinstance(given, Instance) and given.store.get("\0bits"):
        return True
    return constant(kwargs.get("load_in_4bit")) is True or constant(kwargs.get("load_in_8bit")) is True


def finish(run: Run) -> None:
    """The dtype that a quantised base computes in matters only where something is trained on it."""
    held = run.training
    scaling = _loss_scaling(run)
    for identity, (spot, dtype, _) in held.compute_dtypes.items() if held.trained else ():
        if _is_trained_on(run, identity) and (dtype != "float16" or scaling is not None):
            told = scaling if scaling is not None else "scaled"
            run.facts.add(Kind.DECLARED, spot, dtype, Role.QUANTIZED_STORAGE, loss_scaling=told)


def _is_trained_on(run: Run, identity: int) -> bool:
    """Whether a config's models are trained on, as far as this file loads them itself."""
    models = [store for config, store in run.training.quantised if config == identity]
    stepped = [p.store for made in run.training.optimizers for p in made.store["params"] if isinstance(p, Param)]
    held = any(model is store for model in models for store in stepped)
    return not models or held or identity in run.training.quantised_bases


def _loss_scaling(run: Run) -> str | None:
    """Whether the loss is scaled in this file; None where that is decided elsewhere."""
    held = run.training
    if held.arguments:
        modes = {(constant(a.store.get("fp16", Ref(""))), "fp16" in a.store) for a in held.arguments}
        if len(modes) > 1 or any("\0rest" in a.store for a in held.arguments):
            return None
        value, given = modes.pop()
        return "scaled" if value is True else "none" if value is False or not given else None
    if held.saw_scaler:
        return "scaled"
    return "none" if held.plain_backward is not None and not run.training.outside_scaling else None


CALLS: Mapping[str, Call] = {
    "transformers.BitsAndBytesConfig": config,
}
