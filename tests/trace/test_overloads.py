"""Every overload of every watched operation can be called in a traced step, with odd arguments, and is followed."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import harness
import pytest
import torch
from torch import Tensor, nn

from precaudit.runtime.taps.ops import OpTap
from precaudit.runtime.watchers import Watcher

UNSAFE = frozenset({"set_", "resize_", "resize", "as_strided", "as_strided_", "random_", "_local_scalar_dense"})
"""They break the tensors that they are given, or read them."""
KERNELS = ("_", "mkldnn", "cudnn", "miopen", "native_batch_norm", "batch_norm", "convolution")
"""Kernels trust that somebody has looked at their arguments; what cannot be is a crash."""
SCALARS = (2, 0.5, -1, True)


def given(kind: str, tensors: dict[str, Tensor], dtype: torch.dtype) -> list[Any]:
    """A few arguments of a schema's type; [] where none can be thought of."""
    own = tensors[str(dtype)]
    known: dict[str, list[Any]] = {
        "Tensor": [own, own[0, 0].detach().clone(), tensors["torch.int64"]],
        "Optional[Tensor]": [None, own],
        "List[Tensor]": [[own.detach().clone(), own.detach().clone()], []],
        "number": list(SCALARS),
        "Optional[number]": [None, 2],
        "int": [0, 1],
        "Optional[int]": [None, 0],
        "float": [0.5],
        "Optional[float]": [None, 0.5],
        "bool": [True, False],
        "Optional[bool]": [None, True],
        "List[int]": [[0], [2, 2], []],
        "Optional[List[int]]": [None, [0]],
        "List[number]": [[2, 0.5]],
        "Optional[List[float]]": [None],
        "Optional[Generator]": [None],
        "Optional[Device]": [None],
        "Optional[str]": [None],
    }
    return known.get(kind, [None] if kind.startswith("Optional") else [])


def calls(overload: Any, dtype: torch.dtype) -> Iterator[tuple[list[Any], dict[str, Any]]]:
    """Argument lists for an overload: each argument through all its values, the others at their first."""
    generator = torch.Generator().manual_seed(0)
    plain = torch.rand(2, 2, generator=generator)
    tensors = {str(dtype): plain.to(dtype).requires_grad_(), "torch.int64": torch.tensor([[0, 1], [1, 0]])}
    wanted = [(a, given(str(a.type), tensors, dtype)) for a in overload._schema.arguments]
    if any(not values and not argument.has_default_value() for argument, values in wanted):
        return
    wanted = [(argument, values) for argument, values in wanted if values]
    for turn, (_, values) in enumerate(wanted or [(None, [None])]):
        for chosen in range(len(values)):
            args: list[Any] = []
            named: dict[str, Any] = {}
            for place, (argument, each) in enumerate(wanted):
                value = each[chosen if place == turn else 0]
                written = argument.alias_info is not None and argument.alias_info.is_write
                if written and isinstance(value, Tensor):
                    value = value.detach().clone()
                if argument.kwarg_only:
                    named[argument.name] = value
                else:
                    args.append(value)
            yield args, named


def is_watched(tap: OpTap, overload: Any) -> bool:
    """Whether some watcher asks for this operation by its name."""
    plan = tap.plan(overload)
    acts = [act for asked in plan.asked if asked for side in asked for act in side] if plan else []
    owners = {getattr(act, "__self__", None) for act in acts}
    return any(isinstance(owner, Watcher) for owner in owners)


def survey(tap: OpTap) -> list[Any]:
    """The overloads of all watched operations, their in-place and out variants included."""
    overloads: dict[str, list[Any]] = {}
    for full in torch._C._dispatch_get_all_op_names():
        space, _, rest = full.partition("::")
        name, _, overload = rest.partition(".")
        inner = name.startswith(KERNELS) and not name.startswith("_foreach_")
        if space == "aten" and name not in UNSAFE and not inner:
            overloads.setdefault(name, []).append(getattr(getattr(torch.ops.aten, name), overload or "default"))
    watched = {name for name, each in overloads.items() if any(is_watched(tap, one) for one in each)}
    watched |= {f"{name}_" for name in watched}
    return [one for name, each in overloads.items() if name in watched for one in each]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=lambda d: str(d)[6:])
def test_no_overload_of_a_watched_operation_is_beyond_the_trace(dtype: torch.dtype) -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    called = 0

    def odd_calls() -> None:
        nonlocal called
        from precaudit.runtime.taps.ops import OpMode

        modes = [m for m in torch.utils._python_dispatch._get_current_dispatch_mode_stack() if isinstance(m, OpMode)]
        for overload in survey(modes[0].tap) if modes else ():
            for args, named in itertools.islice(calls(overload, dtype), 24):
                with contextlib.suppress(Exception):
                    overload(*args, **named)
                    called += 1

    def train() -> None:
        for _ in range(4):
            odd_calls()
            model(torch.ones(2, 2)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    report = harness.trace_call(train, steps=1)
    assert called > 500
    assert "\n".join(note for note in report.coverage.notes if "could not follow" in note) == ""
