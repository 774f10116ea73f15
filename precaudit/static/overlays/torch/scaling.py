"""Loss scaling: what a GradScaler is asked to do, in order, on each path."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from precaudit.model.vocabulary import Kind, Role
from precaudit.static import nodes as cst
from precaudit.static.language import conditions
from precaudit.static.language.values import (
    Const,
    Instance,
    Number,
    Opaque,
    Optimizer,
    Param,
    Scaler,
    StateDict,
    Tensor,
    Value,
    float_constant,
    options,
    truth,
    unknown,
)
from precaudit.static.overlays.events import Op
from precaudit.static.overlays.torch import handwritten, operands, optimizers, paths

if TYPE_CHECKING:
    from precaudit.static.overlays.run import Run

EXTREME_SCALE = 2.0**24

FIXED_INTERVAL = 1_000_000
"""Steps between two growths of the loss scale from which it is as good as fixed."""

SINCE_CLEARED = frozenset({"clipped", "summed", "runner-scaled", "scaler-stepped"})
"""Events that are over once gradients are cleared."""

State = frozenset[Any]


def scaler(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`GradScaler(...)`."""
    given = kwargs.get("enabled")
    enabled = True if given is None else truth(given)
    if "\0rest" in kwargs:
        enabled = None
    made = Scaler({"sharded": name.endswith("ShardedGradScaler")}, enabled, run.spot(node))
    if enabled is None and isinstance(node, cst.Call):
        for asked in (arg for arg in node.args if arg.keyword is not None and arg.keyword.value == "enabled"):
            run.training.enabled_if[id(made.store)] = conditions.formula(run.interpreter, asked.value)
    run.training.scalers.append(made)
    if enabled is not False:
        run.training.saw_scaler = True
    growth = float_constant(kwargs.get("growth_interval"))
    factor = float_constant(kwargs.get("growth_factor"))
    if enabled is not False and ((growth is not None and growth >= FIXED_INTERVAL) or factor == 1.0):
        run.facts.add(
            Kind.LOSS_SCALING,
            run.spot(node),
            "",
            Role.LOSS_SCALE,
            None,
            "it never grows back after an overflow halved it",
            extreme=True,
            dynamic=False,
        )
    scale = kwargs.get("init_scale")
    if scale is None and args:
        scale = next((a for a in args if float_constant(a) is not None), None)
    value = float_constant(scale)
    if value is not None and value > EXTREME_SCALE and enabled is not False:
        run.facts.add(
            Kind.LOSS_SCALING,
            run.spot(node),
            "",
            Role.LOSS_SCALE,
            None,
            f"init_scale={value:g} overflows float16 gradients until it has been halved often enough",
            extreme=True,
            dynamic=True,
            scale=value,
        )
    return made


def scaler_method(run: Run, made: Scaler, name: str, args: list[Value], node: Any) -> Value:
    """A method of a GradScaler."""
    if name == "scale":
        return _scale(run, made, args, node)
    if name == "unscale_":
        _unscale(run, made, args[0] if args else unknown(), node)
    elif name == "step":
        _step(run, made, args[0] if args else unknown(), node)
    elif name == "update":
        _advance(run, made, node)
    elif name == "get_scale":
        return Number(from_scale=True)
    elif name == "state_dict":
        run.bus.tell(Op(run, "scaler.state_dict", [made], {}, [made], made, node))
        return StateDict("scaler")
    elif name == "is_enabled":
        return Const(made.enabled) if made.enabled is not None else unknown()
    return unknown()


def _scale(run: Run, made: Scaler, args: list[Value], node: Any) -> Value:
    loss = operands.as_tensor(run, args[0]) if args else unknown()
    if made.enabled is False:
        return loss
    marks = operands.marks_of([loss])
    penalty = run.training.penalty
    if "penalty" in marks and penalty is not None:
        because = ("they are penalised in the loss here", run.spot(node))
        run.facts.add(Kind.OP, penalty, "", None, because, op="gradient-penalty-scaled")
    kinds = {"float16" if "float16" in marks else "bfloat16" if "bfloat16" in marks else "unknown"}
    run.training.losses.setdefault(id(made.store), set()).update(kinds)
    if isinstance(loss, Tensor):
        from dataclasses import replace

        return replace(loss, marks=loss.marks | {"scaled", f"scaler:{id(made.store)}"})
    return Opaque(marks=marks | {"scaled", f"scaler:{id(made.store)}"})


def _identity(optimizer: Value) -> int:
    found = options(optimizer)[0]
    return id(found.store) if isinstance(found, (Optimizer, Instance, Opaque)) else id(found)


def _unscale(run: Run, made: Scaler, optimizer: Value, node: Any) -> None:
    key, which = id(made.store), _identity(optimizer)
    states = run.interpreter.paths
    event = ("unscaled", key, which)
    always = ("unscaled-always", key, which)
    if states and (all(event in s for s in states) or any(always in s for s in states)):
        misuse(run, "unscale-twice", node, True)
    # What no condition guards happens in each turn of the loop, whether or not a step follows.
    paths.update(run, lambda s: s | {event} | ({always} if run.interpreter.each_turn(s) else frozenset()))
    float16_gradients(run, optimizer, node)


def float16_gradients(run: Run, optimizer: Value, node: Any) -> None:
    params: tuple[Value, ...] = ()
    for option in options(optimizer):
        if isinstance(option, Optimizer):
            params = option.store["params"]
        elif isinstance(option, Instance) and "param_groups" in option.store:
            params = tuple(optimizers.collect(run, option.store["param_groups"]))
    for param in params:
        if isinstance(param, Param) and param.dtype == frozenset({"float16"}) and optimizers.trainable(param):
            made_low = param.store.get("origin") if "float16" in (param.store.get("dtype") or ()) else None
            spot = param.store.get("spot") or made_low
            run.facts.add(
                Kind.UNSCALE,
                spot or run.spot(node),
                "float16",
                None,
                ("they are unscaled here", run.spot(node)),
                'PyTorch raises "Attempting to unscale FP16 gradients."',
            )
            return


def misuse(run: Run, word: str, node: Any, raises: bool) -> None:
    run.facts.add(Kind.SCALER_CALL, run.spot(node), misuse=word, raises=raises)


def _step(run: Run, made: Scaler, optimizer: Value, node: Any) -> None:
    key, which = id(made.store), _identity(optimizer)
    run.training.stepped_scalers.add(key)
    float16_gradients(run, optimizer, node)
    optimizers.under_autocast(run, node)
    for option in options(optimizer):
        optimizers.stepped(run, option, node)
        if isinstance(option, Instance):
            _step_of_a_wrapper(run, option, key, which, node)
    if made.enabled is False:
        return
    states = run.interpreter.paths
    clipped = [e for s in states for e in s if e[0] == "clipped" and e[1] == key]
    for event in clipped:
        run.facts.add(
            Kind.CLIP,
            run.known_spot(event[2]),
            "",
            Role.GRADIENT,
            ("the scaler steps here", run.spot(node)),
            "",
            scaled=True,
        )
    again = ("stepped", key, which)
    if states and all(again in s for s in states):
        run.facts.add(Kind.SCALER_STEP, run.spot(node), update="missing")
    elif any(again in s for s in states):
        run.training.never_updated.append((key, run.spot(node)))
    stale = [e for s in states for e in s if e[0] == "updated" and e[1] == key]
    if stale and all(any(e[0] == "updated" and e[1] == key for e in s) for s in states):
        run.facts.add(
            Kind.SCALER_CALL,
            run.known_spot(stale[0][2]),
            "",
            None,
            ("this optimizer's gradients carry the scale from before that update", run.spot(node)),
            misuse="update-per-optimizer",
            raises=False,
        )
    paths.update(
        run,
        lambda s: (
            frozenset(e for e in s if not (e[0] in ("pending", "clipped", "manual") and e[1] in (key, None)))
            | {again, ("scaler-stepped", which)}
        ),
    )


def _step_of_a_wrapper(run: Run, wrapper: Instance, key: int, which: int, node: Any) -> None:
    """Runs `wrapper.step()` as a scaler does: the gradients in its param_groups have been unscaled by then."""
    event = ("unscaled", key, which)
    by_hand = all(event in s for s in run.interpreter.paths)
    paths.update(run, lambda s: s | {event})
    handwritten.step(run, wrapper, node)
    if not by_hand:
        paths.update(run, lambda s: s - {event})


def _advance(run: Run, made: Scaler, node: Any) -> None:
    key = id(made.store)
    run.training.updates.add(key)
    states = run.interpreter.paths
    relevant = [s for s in states if any(e[0] == "pending" and e[1] == key for e in s)]
    if (
        made.enabled
        and relevant
        and len(relevant) == len(states)
        and not any(e[0] in ("stepped", "unscaled") for s in states for e in s)
    ):
        misuse(run, "update-without-step", node, True)
    run.remember(node)
    event = ("updated", key, id(node))
    paths.update(
        run,
        lambda s: (
            frozenset(e for e in s if e[0] not in ("stepped", "unscaled", "unscaled-always") or e[1] != key)
            | ({event} if any(e[0] == "stepped" and e[1] == key for e in s) else frozenset())
        ),
    )


def clip(run: Run, args: list[Value], kwargs: dict[str, Value], node: Any) -> None:
    """Gradients are clipped: noted on each path, and reported when the scaler steps on that path."""
    limit = kwargs.get("max_norm", kwargs.get("clip_value", args[1] if len(args) > 1 else None))
    if isinstance(limit, Number) and limit.from_scale:
        return
    if limit is not None and float_constant(limit) == float("inf"):
        return
    states = run.interpreter.paths
    by_runner = [e for s in states for e in s if e[0] == "runner-scaled"]
    if by_runner and all(paths.has(s, "runner-scaled") for s in states):
        because = ("the loss is scaled here", run.known_spot(by_runner[0][1]))
        run.facts.add(Kind.CLIP, run.spot(node), "", Role.GRADIENT, because, "", scaled=True)
        return
    pending = [s for s in states if paths.pending(run, s)]
    if not pending or any(paths.has(s, "unscaled") or paths.has(s, "manual") for s in pending):
        return
    run.remember(node)

    def change(state: State) -> State:
        keys = paths.pending(run, state)
        return state | {("clipped", key, id(node)) for key in keys}

    paths.update(run, change)


def gradients_cleared(run: Run) -> None:
    """`zero_grad()` or `p.grad = None`."""
    run.training.cleared = True
    paths.update(run, lambda s: frozenset(e for e in s if e[0] not in SINCE_CLEARED))


def runner_backward(run: Run, node: Any) -> None:
    """`accelerator.backward(loss)` in float16, which scales the loss."""
    run.remember(node)
    paths.update(run, lambda s: s | {("runner-scaled", id(node))})


def runner_unscaled(run: Run) -> None:
    """`accelerator.clip_grad_norm_(...)` and its like unscale first."""
    paths.update(run, lambda s: frozenset(e for e in s if e[0] != "runner-scaled"))


def gradient_replaced(run: Run, value: Value, node: Any) -> None:
    """Gradients were replaced: by a share of themselves that depends on their size, or by anything else."""
    if "ratio" in operands.marks_of([operands.as_tensor(run, value)]):
        clip(run, [], {}, node)
    else:
        gradient_written(run, node)


def gradient_written(run: Run, node: Any) -> None:
    """Gradients were changed in place by hand, perhaps to unscale them."""
    if any(paths.has(s, "pending") for s in run.interpreter.paths):
        paths.update(run, lambda s: s | {("manual", None)})
