"""How each op is run in float64: as it is, on other arguments, by a formula of its own, or not at all.

What a companion must not do is decide: masks of random ops, indices of maxima and what a program branches on are taken
from the real run. What it must not do either is touch anything of the program's: integers that an op writes are copied.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import torch_private as private
from ..optable import REDUCTION_COLLECTIVES
from . import quantized
from .companions import WIDE, floats
from .exchange import COLLECTIVES

VIEW, REAL, RUN, LOST, SHOWN = range(5)
"""Makes no number; makes numbers that are exact as they are; is run in float64; cannot be followed; is a collective,
whose ranks show each other their companions."""

NOTHING = frozenset("resize_ resize_as_ set_ record_stream _local_scalar_dense is_same_size item".split())
SHAPES = ("empty", "new_empty", "zeros", "new_zeros", "ones", "new_ones")
"""Beginnings of the names of ops whose result is no computed number, or 0 or 1."""
SAMPLERS = frozenset("bernoulli normal multinomial poisson binomial _standard_gamma _sample_dirichlet".split())
"""What gives nothing but random numbers; what drops some of its input at random, as fused attention may, gives more."""
EXACT = frozenset("zero_ _foreach_zero_ _amp_update_scale_".split())
FACTORIES = frozenset("full full_like new_full scalar_tensor arange linspace logspace range eye".split())
UNSAID: dict[str, tuple[int, ...]] = dict.fromkeys(
    ("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm"), (3, 4)
) | {"all_gather_copy_in": (1,)}
"""Positions that an op writes to, though its schema says nothing of it."""
COPIES = frozenset(("_wrap_tensor_autograd",))
"""Ops around collectives that give back what they are given."""
AS_IT_IS = frozenset("state_steps grad_scale found_inf".split())
"""Arguments of which fused kernels take float32 only: counts and powers of two, which are exact."""
Run = Callable[[Any, list[Any], dict[str, Any], Any], Any]
"""(op, arguments in float64, what the op really gave) -> what it gives in float64."""


class Recipe(NamedTuple):
    """What to do about one op."""

    func: Any
    """Kept alive: recipes are found by its id."""
    name: str
    how: int
    written: tuple[tuple[int, str], ...]
    """Positions and names of the arguments it writes to."""
    real: frozenset[int | str]
    """Positions and names of floating arguments that are given as they are."""
    run: Run
    pointwise: bool
    reduces: bool = False
    """It adds up over ranks: what the others' exact numbers are is not known here."""
    tensors: tuple[int, ...] | None = None
    """Where tensors stand, of an op that takes no lists of them; None of others."""
    positions: frozenset[int] = frozenset()
    """Where those stand that it writes to."""
    call: Any = None
    """What calling the op comes to."""
    makes: bool = True
    """Some of its results may be new memory."""

    def given(self, args: Any, kwargs: Any) -> list[Tensor]:
        """The floating tensors that it is given."""
        if self.tensors is None or kwargs:
            return list(floats((*args, *kwargs.values())))
        count = len(args)
        return [
            one
            for at in self.tensors
            if at < count and isinstance(one := args[at], Tensor) and one.dtype in WIDE and one.layout is torch.strided
        ]

    def targets(self, args: Any, kwargs: Any) -> list[Tensor]:
        """The floating tensors that it writes to."""
        given = (args[at] if at < len(args) else kwargs.get(name) for at, name in self.written if at not in self.real)
        return list(floats(given))


def recipe_of(func: Any) -> Recipe:
    """Reads an op's schema and tags."""
    schema = getattr(func, "_schema", None)
    if schema is None:
        return Recipe(func, str(func), LOST, (), frozenset(), plainly, False)
    space, _, name = schema.name.partition("::")
    said = {at for at, arg in enumerate(schema.arguments) if arg.alias_info is not None and arg.alias_info.is_write}
    collective = (0,) if "c10d" in space and (space == "c10d" or name.endswith("_")) else ()
    written = tuple((at, schema.arguments[at].name) for at in sorted({*said, *UNSAID.get(name, ()), *collective}))
    kept = AS_IT_IS if name.startswith(("_fused_", "_amp_foreach_non_finite")) else frozenset[str]()
    kept |= quantized.SCALES if space == quantized.OPERATIONS else frozenset()
    real = {key for at, arg in enumerate(schema.arguments) if arg.name in kept for key in (at, arg.name)}
    how = _how(func, space, name, bool(written), schema)
    shown = name if space == "aten" else schema.name
    run, pointwise = FORMULAS.get(name, plainly), torch.Tag.pointwise in func.tags
    tensors = _tensors(schema) if not real else None
    return Recipe(
        func,
        shown,
        how,
        written,
        frozenset(real),
        run,
        pointwise,
        name in REDUCTION_COLLECTIVES,
        tensors,
        frozenset(at for at, _ in written),
        private.kernel_of(func) if run is plainly else func,
        not written or any(one.alias_info is None for one in schema.returns),
    )


def _tensors(schema: Any) -> tuple[int, ...] | None:
    """Where tensors stand among its arguments; None where there are lists of them."""
    kinds = [str(arg.type) for arg in schema.arguments]
    if any("Tensor" in kind and kind not in ("Tensor", "Optional[Tensor]") for kind in kinds):
        return None
    return tuple(at for at, kind in enumerate(kinds) if "Tensor" in kind)


def _how(func: Any, space: str, name: str, writes: bool, schema: Any) -> int:
    views = bool(schema.returns) and all(given.alias_info is not None for given in schema.returns)
    if name in NOTHING or space.startswith("prim") or name.startswith(SHAPES) or (views and not writes):
        return VIEW
    if name in EXACT:
        return REAL
    if space == quantized.OPERATIONS:
        return RUN if name in FORMULAS else REAL
    if torch.Tag.nondeterministic_seeded in func.tags and name not in FORMULAS:
        draws = name.endswith("_") or name.startswith("rand") or name.removesuffix("_like") in SAMPLERS
        return REAL if draws else LOST
    if schema.name in COLLECTIVES:
        return SHOWN
    if space == "fsdp" or name in COPIES:  # written in Python, and copies numbers
        return RUN
    if "c10d" in space or (private.is_foreign(func) and private.is_written_in_python(func)):
        return LOST
    return RUN


# -- formulas


class Refused(Exception):
    """This op cannot be run in float64 with these arguments."""


def plainly(func: Any, args: list[Any], kwargs: dict[str, Any], out: Any) -> Any:
    return func(*args, **kwargs)


def _to_softmax(func: Any, args: list[Any], kwargs: dict[str, Any], out: Any) -> Any:
    """`half_to_float` is a cast inside the kernel."""
    return func(args[0], args[1], False)


def _dropout(func: Any, args: list[Any], kwargs: dict[str, Any], out: Any) -> Any:
    """With the real mask."""
    if args[2] is False:
        return args[0].clone(), out[1]
    return args[0] * out[1] * (1 / (1 - args[1]) if args[1] < 1 else 0.0), out[1]


def _without_dropout(func: Any, args: list[Any], kwargs: dict[str, Any], out: Any) -> Any:
    """Attention whose kernel draws random numbers only where it drops something."""
    if (args[3] if len(args) > 3 else kwargs.get("dropout_p", 0.0)) > 0:
        raise Refused
    return func(*args, **kwargs)


def _unscaled(func: Any, args: list[Any], kwargs: dict[str, Any], out: Any) -> Any:
    """Its kernel wants the inverse scale in float32."""
    for gradient in args[0]:
        gradient.mul_(args[2])


def _by_index(func: Any, args: list[Any], kwargs: dict[str, Any], out: Any) -> Any:
    """The elements that the real run chose: two that are nearly equal may come in another order in float64."""
    dim = kwargs.get(
        "dim", args[AT_DIM.get(func._schema.name, 1)] if len(args) > AT_DIM.get(func._schema.name, 1) else -1
    )
    chosen = out[1]
    if args[0].dim() == 0:
        return args[0].clone(), chosen
    if chosen.dim() < args[0].dim():
        return torch.take_along_dim(args[0], chosen.unsqueeze(dim), dim).squeeze(dim), chosen
    return torch.take_along_dim(args[0], chosen, dim), chosen


AT_DIM = {"aten::topk": 2, "aten::kthvalue": 2}


def _pooled(func: Any, args: list[Any], kwargs: dict[str, Any], out: Any) -> Any:
    """Max pooling takes the elements that the real one took."""
    kept, chosen = args[0].dim() - _pooled_dims(func), out[1]
    flat = args[0].flatten(kept).gather(-1, chosen.flatten(kept))
    return flat.view(chosen.shape), chosen


def _pooled_dims(func: Any) -> int:
    return 3 if "3d" in func._schema.name else 2


def _normed(func: Any, args: list[Any], kwargs: dict[str, Any], out: Any) -> Any:
    """An eps that is not given follows the dtype; the program's stands."""
    eps = args[3] if len(args) > 3 else kwargs.get("eps")
    return func(args[0], args[1], args[2], torch.finfo(torch.float32).eps if eps is None else eps)


def _copied(func: Any, args: list[Any], kwargs: dict[str, Any], out: Any) -> Any:
    return args[0].clone()


FORMULAS: dict[str, Run] = {
    **dict.fromkeys(("_softmax", "_log_softmax"), _to_softmax),
    "native_dropout": _dropout,
    "_scaled_dot_product_flash_attention_for_cpu": _without_dropout,
    "_amp_foreach_non_finite_check_and_unscale_": _unscaled,
    "max_pool2d_with_indices": _pooled,
    "max_pool3d_with_indices": _pooled,
    "_fused_rms_norm": _normed,
    **dict.fromkeys(COPIES, _copied),
    "gemm_4bit": quantized.multiplied,
}
for _name in "topk sort max min kthvalue median nanmedian mode cummax cummin".split():
    FORMULAS[_name] = lambda func, args, kwargs, out: (
        _by_index(func, args, kwargs, out) if isinstance(out, (list, tuple)) else func(*args, **kwargs)
    )
