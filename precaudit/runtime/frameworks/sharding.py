"""What FSDP1 and FSDP2 have in common: a policy of three dtypes, fqns in groups, and shards that want a scaler."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ...model.vocabulary import Kind, Role, Site
from ..dtypes import DTYPE_NAMES
from ..process.ledger import Observation
from ..trackers.claims import Declaration
from ..trackers.loss_scale import LossScale


def policy_declares(word: str, policy: Any, original: Any, site: Site | None) -> Iterator[Declaration]:
    """The dtypes of one unit's policy; `original` is the dtype of its parameters, which holds where none is given."""
    param = getattr(policy, "param_dtype", None)
    reduce = getattr(policy, "reduce_dtype", None)
    if param is not None:
        yield Declaration(Role.FORWARD_WEIGHT, DTYPE_NAMES[param], f"{word}(param_dtype)", site)
    if reduce is not None:
        yield Declaration(Role.GRADIENT_REDUCTION, DTYPE_NAMES[reduce], f"{word}(reduce_dtype)", site)
    elif param is not None:
        by = "reduce_dtype is not set and follows param_dtype"
        yield Declaration(Role.GRADIENT_REDUCTION, DTYPE_NAMES[param], by, site, "default")
    elif original in DTYPE_NAMES:
        by = "reduce_dtype is not set and follows the parameters"
        yield Declaration(Role.GRADIENT_REDUCTION, DTYPE_NAMES[original], by, site, "default")


def pattern(fqns: Sequence[str]) -> str:
    """One name for the parameters of one unit: their own fqn, or what their fqns begin with and a star."""
    parts = [fqn.split(".") for fqn in fqns]
    if len(parts) == 1:
        return fqns[0]
    front = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        front.append(level[0])
    return ".".join([*front, "*"])


def unscaled_shards(loss_scale: LossScale, site: Site | None, word: str, needs: str = "") -> Iterator[Observation]:
    """Sharded float16 whose loss no scaler scaled, or one that sees this rank's shard alone: any but `needs`."""
    scalers = [scaler for scaler, state in loss_scale.scalers.items() if state.uses]
    fit = [s for s in scalers if not needs or any(kind.__name__ == needs for kind in type(s).__mro__)]
    if scalers and not fit:
        made = type(scalers[0]).__name__
        detail = f"{word} with {made}, which sees inf in this rank's shard only"
    elif loss_scale.missing:
        detail = f"{word} with no loss scaling"
    else:
        return
    yield Observation(
        Kind.LOSS_SCALING,
        "float16",
        Role.LOSS_SCALE,
        site,
        detail=detail,
        count=1,
        attrs={"sharded_without_scaler": True},
    )
