"""Regions: autocast in every spelling, no_grad, and what a `with` statement makes of any object."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from precaudit.model.vocabulary import FLOATING
from precaudit.static.language import calls, classes
from precaudit.static.language.values import (
    Assumed,
    Autocast,
    Choice,
    Class,
    Const,
    Context,
    Device,
    Dtypes,
    Function,
    Instance,
    Opaque,
    Ref,
    Value,
    truth,
    unknown,
)
from precaudit.static.overlays.events import tell
from precaudit.static.overlays.torch import opaque, operands
from precaudit.static.overlays.torch.autocast import table

if TYPE_CHECKING:
    from precaudit.static.overlays.run import Run

NO_GRAD = ("torch.no_grad", "torch.inference_mode", "torch.autograd.no_grad", "torch.autograd.grad_mode.no_grad")


def autocast_region(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`torch.autocast(...)` in any of its spellings."""
    rest = list(args)
    if name.startswith(("torch.cuda.", "torch.cpu.")):
        devices = frozenset({name.split(".")[1]})
        enabled_at, dtype_at = 0, 1
    else:
        given = kwargs.get("device_type", rest[0] if rest else None)
        devices = device_types(given)
        dtype_at, enabled_at = 1, 2
    enabled = kwargs.get("enabled", rest[enabled_at] if len(rest) > enabled_at else Const(True))
    dtype_value = kwargs.get("dtype", rest[dtype_at] if len(rest) > dtype_at else None)
    wanted = operands.dtype_argument(run, dtype_value)
    if wanted is None:
        known = devices & {"cuda", "cpu"}
        dtype: Dtypes | None = frozenset(table(d).default_dtype for d in (known or {"cuda", "cpu"}))
    else:
        dtype = operands.names(wanted)
    if dtype is not None and not dtype <= {"float16", "bfloat16"}:
        dtype = dtype if dtype <= set(FLOATING) else None
    state = truth(enabled)
    if "\0rest" in kwargs:
        dtype, state = None, None
    last = max(enabled_at, dtype_at) + 1
    cached = kwargs.get("cache_enabled", rest[last] if len(rest) > last else Const(True))
    region = Autocast(devices, dtype, state, run.spot(node), wanted is not None, truth(cached) is True)
    if state is not False and dtype == frozenset({"float16"}):
        run.float16_region = region.spot
    tell(run, "autocast", [Ref(name), *args], node, region, kwargs)
    return region


def enter(run: Run, value: Value, node: Any) -> tuple[Value | None, Value]:
    """What a `with` item does to what follows, and what it binds."""
    if isinstance(value, Choice):
        regions = [o for o in value.options if isinstance(o, Autocast)]
        if regions:
            first = regions[0]
            dtype = first.dtype
            for other in regions[1:]:
                dtype = None if dtype is None or other.dtype is None else dtype | other.dtype
            enabled = first.enabled if len(regions) == len(value.options) else None
            return replace(first, dtype=dtype, enabled=enabled), value
        return (_unknown_region(run, node) if any(isinstance(o, Opaque) for o in value.options) else None), value
    if isinstance(value, Autocast):
        return _entered(run, value, node), value
    if isinstance(value, Context):
        return value, value
    if isinstance(value, Function) and value.kind == "manager":
        return value, unknown()
    if isinstance(value, Ref) and value.name in NO_GRAD:
        return Context("no_grad"), value
    if isinstance(value, Instance) and isinstance(value.cls, Class):
        method = classes.find_method(value.cls, "__enter__")
        if method is not None:
            bound = calls.call(run.interpreter, classes.bind(method[0], value, method[1]), [], {}, node)
            return None, bound
        return None, value
    if isinstance(value, Opaque):
        return _unknown_region(run, node), unknown()
    if isinstance(value, Instance) and value.library == "contextlib.ExitStack":
        return _unknown_region(run, node), value
    return None, value


def _entered(run: Run, region: Autocast, node: Any) -> Autocast:
    """The region as it runs: one without a dtype inside another of the same device keeps that one's dtype."""
    outer = run.autocast()
    if outer is not None and not region.dtype_given and region.enabled is not False:
        if outer.devices == region.devices and outer.enabled is not False:
            return replace(region, dtype=outer.dtype)
        return replace(region, dtype=None)
    if region.enabled:
        tell(run, "autocast.enter", [region], node)
    return region


def _unknown_region(run: Run, node: Any) -> Value | None:
    """A context manager that cannot be followed may be an autocast region of any dtype."""
    return Autocast(frozenset({"?"}), None, None, None)


def device_types(value: Value | None) -> frozenset[str]:
    """The device types a value may name; {"?"} where that is not known."""
    if value is None:
        return frozenset({"?"})
    if isinstance(value, Choice):
        return frozenset().union(*(device_types(option) for option in value.options))
    if isinstance(value, Device):
        return value.types
    if isinstance(value, Const) and isinstance(value.value, str):
        return frozenset({value.value.split(":")[0]})
    return frozenset({"?"})


def no_grad(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    if args and isinstance(args[0], Function):
        return args[0]
    return Context("no_grad")


def enable_grad(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    return Context("enable_grad")


def set_grad_enabled(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    on = truth(args[0]) if args else None
    return Context("enable_grad" if on else "no_grad") if on is not None else Context("null")


def null(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    return Context("null")


def exit_stack(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`ExitStack()`: of the regions that it enters, those are known that it enters in its own `with`."""
    return Instance(Ref("contextlib.ExitStack"), {})


def stack_method(
    run: Run, receiver: Instance, name: str, args: list[Value], kwargs: dict[str, Value], node: Any
) -> Value:
    """`stack.enter_context(region)`; under a condition, the region may be on or off."""
    if name != "enter_context" or not args:
        return opaque.result(run, [*args, *kwargs.values()], node)
    region, bound = enter(run, args[0], node)
    if isinstance(region, Autocast) and any(
        isinstance(event, Assumed) for state in run.interpreter.paths for event in state
    ):
        region = replace(region, enabled=None if region.enabled else region.enabled)
    if region is not None and not isinstance(region, Function):
        run.interpreter.contexts.append(region)
    return bound


def device(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    return Device(device_types(args[0] if args else None))
