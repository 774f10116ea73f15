"""Optimizers, GradScalers, backward, clipping and checkpoints: what happens to them, in order, on each path."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from precaudit.model.vocabulary import Kind, Role, rounds_to
from precaudit.static.language import classes
from precaudit.static.language.heap import Store
from precaudit.static.language.values import (
    ANY,
    Autocast,
    Choice,
    Class,
    Const,
    Dict,
    Dtypes,
    Instance,
    Number,
    Opaque,
    Optimizer,
    Param,
    Ref,
    Scaler,
    Seq,
    Spot,
    StateDict,
    Tensor,
    Value,
    constant,
    float_constant,
    is_low,
    options,
    seq,
    truth,
    unknown,
)
from precaudit.static.library import ops
from precaudit.static.library.modules import is_module, parameters

if TYPE_CHECKING:
    from precaudit.static.library.torch_model import Torch

State = frozenset[Any]
ADAPTIVE = frozenset(
    {"Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "RMSprop", "SparseAdam", "Rprop", "ASGD"}
)
COMPENSATED = re.compile(r"kahan|compensat|stochastic|_sr_|seeded_round", re.IGNORECASE)
ADAPTER = re.compile(r"lora|adapter|\bia3\b|prompt", re.IGNORECASE)
EXTREME_SCALE = 2.0**24
FIXED_INTERVAL = 1_000_000
"""Steps between two growths of the loss scale from which it is as good as fixed."""


class Training:
    """What the code under check did with its optimizers and scalers."""

    def __init__(self, torch: Torch) -> None:
        self.torch = torch
        self.optimizers: list[Optimizer] = []
        self.custom: list[Instance] = []
        self.saw_scaler = False
        self.unscaled_backward: list[tuple[Spot, Spot | None]] = []
        self.scalers: list[Scaler] = []
        self.losses: dict[int, set[str]] = {}
        self.saves: list[tuple[Spot, bool]] = []
        self.scaler_saved = False
        self.updates: set[int] = set()
        self.never_updated: list[tuple[int, Spot]] = []
        self.stepped_scalers: set[int] = set()
        self.cleared = False
        self.regions: list[Autocast] = []
        self.low_adapters: list[tuple[Spot, Spot | None]] = []
        self.regions_used: dict[int, Autocast] = {}
        self.summed: list[tuple[Spot, Dtypes]] = []
        self.penalty: Spot | None = None
        """Where gradients of a scaled value were taken, to be differentiated again."""

    # ---- optimizers

    def optimizer(self, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
        """`torch.optim.<name>(params, ...)` and its kin."""
        torch = self.torch
        given = args[0] if args else kwargs.get("params", unknown())
        short = name.rsplit(".", 1)[-1]
        eps = kwargs.get("eps", Const(1e-8) if short in ADAPTIVE and "eps" not in kwargs else None)
        if short == "Adagrad" and "eps" not in kwargs:
            eps = Const(1e-10)
        store: Store = {
            "params": tuple(self.collect(given)),
            "cls": short,
            "library": name,
            "spot": torch.spot(node),
            "eps": eps,
            "momentum": kwargs.get("momentum", args[2] if short == "SGD" and len(args) > 2 else Const(0)),
            "adaptive": short in ADAPTIVE,
            "loops": torch.loops(),
        }
        made = Optimizer(store)
        self.optimizers.append(made)
        return made

    def collect(self, value: Value, depth: int = 0) -> list[Value]:
        """The parameters in a list, a group dict, named pairs or a generator of them."""
        if depth > 4:
            return []
        if isinstance(value, (Param, Tensor)):
            return [value]
        if isinstance(value, Opaque):
            return [value]
        if isinstance(value, Dict):
            inner = value.store.get("params") or value.store.get(ANY)
            return self.collect(inner, depth + 1) if inner is not None else []
        if isinstance(value, Seq):
            return [p for item in value.items for p in self.collect(item, depth + 1)]
        if isinstance(value, Choice):
            found = [self.collect(option, depth + 1) for option in value.options]
            return [p for group in found for p in group]
        if is_module(self.torch, value):
            return []
        return []

    def cast_after_optimizer(self, stores: list[Store], dtype: Dtypes | None, spot: Spot) -> None:
        """Remembers a cast of parameters that an optimizer already holds; it counts when that optimizer steps again."""
        identities = {id(store) for store in stores}
        for made in self.optimizers:
            held = [p for p in made.store["params"] if isinstance(p, Param) and id(p.store) in identities]
            if any(p.trainable is True for p in held):
                self.torch.interpreter.heap.put(made.store, "cast_after", (spot, dtype))

    def step(self, made: Value, node: Any) -> None:
        """`optimizer.step()`, called by the user and not by a scaler."""
        self._under_autocast(node)
        states = self.torch.interpreter.paths
        pending = [s for s in states if self._has(s, "pending")]
        untouched = all(not self._has(s, "unscaled") and not self._has(s, "manual") for s in states)
        if pending and untouched and len(pending) == len(states):
            self.torch.facts.add(Kind.OPTIMIZER_STEP, self.torch.spot(node), gradients="scaled", autocast=False)
        self.stepped(made, node)

    def _under_autocast(self, node: Any) -> None:
        region = self.torch.autocast()
        if region is not None and region.spot is not None and region.enabled is not False:
            self.torch.facts.add(
                Kind.OPTIMIZER_STEP,
                self.torch.spot(node),
                "",
                None,
                ("the region begins here", region.spot),
                gradients="unscaled",
                autocast=True,
            )

    def stepped(self, made: Value, node: Any) -> None:
        """The optimizer's update ran: its parameters' dtypes at this moment are what it updates."""
        if isinstance(made, Optimizer):
            self.examine(made)
            cast = made.store.get("cast_after")
            if cast is not None:
                spot, dtype = cast
                if is_low(dtype):
                    self.torch.facts.add(
                        Kind.CAST,
                        spot,
                        dtype,
                        None,
                        ("the optimizer was built here", made.store["spot"]),
                        after_optimizer=True,
                    )
            made.store["examined"] = True

    def examine(self, made: Optimizer) -> None:
        """Low trainable parameters in an optimizer: no master weights, low state, eps that vanishes."""
        store = made.store
        facts = self.torch.facts
        low: list[Any] = []
        for param in store["params"]:
            dtype = param.dtype
            if not is_low(dtype):
                continue
            if isinstance(param, Param) and not self._trainable(param):
                continue
            if isinstance(param, (Tensor, Param)):
                low.append(param)
        if not low:
            return
        trained = [p for p in store["params"] if isinstance(p, Param) and self._trainable(p)]
        adapters = bool(trained) and all(ADAPTER.search(p.name) for p in trained)
        spot: Spot = store["spot"]
        first = low[0]
        dtype = first.dtype
        made_low = first.store.get("spot") if isinstance(first, Param) else first.spot
        cause = ("parameters became " + min(dtype) + " here", made_low)
        attrs: dict[str, Any] = {"allowed_because": "adapter-only"} if adapters else {}
        facts.add(
            Kind.HOLDS,
            made_low or spot,
            dtype,
            Role.MASTER_WEIGHT,
            ("the optimizer is built here", spot),
            f"{store['cls']} updates them in place",
            **attrs,
        )
        if adapters and dtype == frozenset({"float16"}):
            self.low_adapters.append((spot, made_low))
        has_state = store["adaptive"] or float_constant(store["momentum"]) not in (0.0, None)
        if not store["library"].startswith("torch.optim") or not has_state:
            return
        extra: dict[str, Any] = {"adapter_only": True} if adapters else {}
        facts.add(
            Kind.HOLDS,
            spot,
            dtype,
            Role.OPTIMIZER_STATE,
            cause,
            f"{store['cls']} keeps its state in the parameters' dtype",
            **extra,
        )
        eps = float_constant(store["eps"])
        if eps and dtype and store["adaptive"]:
            rounded = {rounds_to(eps, name) for name in dtype}
            if rounded <= {"zero", "subnormal"}:
                facts.add(Kind.EPS, spot, dtype, Role.OPTIMIZER_STATE, cause, f"eps={eps:g}", rounds_to=min(rounded))

    def _trainable(self, param: Param) -> bool:
        if "requires_grad" not in param.store:
            return True
        return param.trainable is True

    def used_in_region(self, region: Autocast | None) -> None:
        """Autocast cached its copy of a weight in this region."""
        if region is not None and region.enabled:
            self.regions_used[id(region)] = region

    # ---- optimizers written in the code under check

    def is_optimizer_class(self, cls: Value) -> bool:
        bases = classes.library_bases(cls)
        return any(b.startswith("torch.optim") and b.rsplit(".", 1)[-1][:1].isupper() for b in bases)

    def init_optimizer(self, instance: Instance, args: list[Value], kwargs: dict[str, Value]) -> None:
        """`super().__init__(params, defaults)` of a class derived from torch.optim.Optimizer."""
        given = args[0] if args else kwargs.get("params", unknown())
        defaults = args[1] if len(args) > 1 else kwargs.get("defaults", unknown())
        group: Store = dict(defaults.store) if isinstance(defaults, Dict) else {ANY: unknown()}
        group["params"] = seq(self.collect(given), open=True)
        put = self.torch.interpreter.heap.put
        put(instance.store, "param_groups", seq([Dict(group)], open=True))
        put(instance.store, "state", Dict({}, "optimizer_state"))
        put(instance.store, "defaults", defaults)
        self.custom.append(instance)

    def current_optimizer(self) -> Instance | None:
        """The hand-written optimizer whose method is being run."""
        for frame in reversed(self.torch.interpreter.frames):
            if isinstance(frame.receiver, Instance) and self.is_optimizer_class(frame.receiver.cls):
                return frame.receiver
        return None

    def compensated(self, instance: Instance) -> bool:
        """Whether the class compensates on purpose: Kahan summation or stochastic rounding."""
        cls = instance.cls
        return isinstance(cls, Class) and bool(COMPENSATED.search(cls.scope.source.tree.code_for_node(cls.node)))

    def state_stored(self, key: Any, value: Value, node: Any) -> None:
        """A value was put into `optimizer.state[p]`."""
        instance = self.current_optimizer()
        value = ops.as_tensor(self.torch, value)
        if instance is None or not isinstance(value, Tensor) or not value.low or self.compensated(instance):
            return
        counter = isinstance(key, str) and (
            key in ("step", "t", "steps", "iter", "count") or "beta" in key or key == "lr"
        )
        spot = value.origin or value.spot or self.torch.spot(node)
        attrs: dict[str, Any] = {}
        if counter or value.zero_dim:
            attrs = {"what": "hyperparameter", "key": "step" if key in ("t", "steps", "iter", "count") else str(key)}
        self.torch.facts.add(
            Kind.HOLDS,
            spot,
            value.dtype,
            Role.OPTIMIZER_STATE,
            ("it is stored here", self.torch.spot(node)),
            f"state['{key}']" if isinstance(key, str) else "",
            **attrs,
        )

    def parameter_written(self, param: Param, name: str, args: list[Value], node: Any) -> None:
        """A parameter was changed in place by a tensor method or an augmented assignment."""
        dtype = param.dtype
        instance = self.current_optimizer()
        region = self.torch.autocast()
        cached = region is not None and id(region) in self.regions_used and region.spot is not None
        written = dtype == frozenset({"float32"}) and self._trainable(param) and name != "zero"
        if region is not None and cached and instance is None and written:
            self.torch.facts.add(
                Kind.AUTOCAST,
                self.torch.spot(node),
                region.dtype,
                None,
                ("the region that caches its copy begins here", region.spot),
                enabled=True,
                stale_cache=True,
            )
        if not is_low(dtype):
            return
        source = ops.marks_of([ops.as_tensor(self.torch, a) for a in args])
        if instance is not None:
            if name in ("copy", "zero", "fill") or not self._trainable(param) or self.compensated(instance):
                return
            self.torch.facts.add(
                Kind.HOLDS,
                self.torch.spot(node),
                dtype,
                Role.MASTER_WEIGHT,
                ("parameters were cast here", param.store.get("spot")),
                "the optimizer's step writes them in place",
            )
            return
        if (
            "gradient" in source
            and name in ("add", "sub", "addcdiv")
            and self._trainable(param)
            and not self.torch.grad()
        ):
            self.torch.facts.add(
                Kind.HOLDS,
                self.torch.spot(node),
                dtype,
                Role.MASTER_WEIGHT,
                ("parameters were cast here", param.store.get("spot")),
                "gradients are applied to them in place",
            )
            return
        averaged = name in ("add", "lerp", "sub") or (
            name == "copy" and any(isinstance(a, Tensor) and a.op in ("Add", "Subtract", "lerp") for a in args)
        )
        if averaged and "weights" in source and "gradient" not in source:
            self.average(dtype, param.store.get("spot") or self.torch.spot(node), node)

    def average(self, dtype: Dtypes | None, spot: Spot, node: Any) -> None:
        self.torch.facts.add(
            Kind.HOLDS,
            spot,
            dtype,
            Role.ACCUMULATOR,
            ("the average is updated here", self.torch.spot(node)),
            "its updates are far below half a unit in the last place",
            what="ema",
        )

    # ---- values updated from themselves

    def accumulate(self, target: Value, added: list[Value], node: Any, name: str, attribute: bool) -> None:
        """A low tensor was updated from itself; which mistake that is depends on what was added."""
        target = ops.as_tensor(self.torch, target) if not isinstance(target, Param) else target
        if isinstance(target, Param):
            if target.store.get("kind") == "buffer" and is_low(target.dtype) and name in ("add", "sub", "lerp"):
                self._long_lived(target.dtype, target.store.get("spot"), target.store.get("origin"), node)
                return
            self.parameter_written(target, name, added, node)
            return
        if not isinstance(target, Tensor) or not target.low:
            return
        if self.torch.interpreter.inside("forward") and not attribute:
            return
        marks = ops.marks_of([ops.as_tensor(self.torch, a) for a in added])
        spot = target.origin or target.spot or self.torch.spot(node)
        if "gradient" in target.marks and "created" not in target.marks:
            return
        if self.current_optimizer() is not None:
            return
        if "gradient" in marks and "differentiable" in target.marks:
            return  # a leaf that the loop itself trains or perturbs, not a buffer for its gradients
        squares = [a for a in added if isinstance(a, Tensor) and a.square is not None]
        if "gradient" in marks and squares and target.zero_dim:
            return  # a norm of the gradients: not a sum of them
        if "gradient" in marks:
            decays = "decayed" in target.marks or name in ("lerp", "addcmul")
            role = Role.OPTIMIZER_STATE if decays else Role.GRADIENT_ACCUMULATION
            self.torch.facts.add(
                Kind.HOLDS, spot, target.dtype, role, ("gradients are added here", self.torch.spot(node)), ""
            )
        elif (
            "weights" in marks and ("weights" in target.marks or "created" in target.marks) and name in ("add", "lerp")
        ):
            if "differentiable" not in marks or "detached" in marks or not self.torch.grad():
                self.average(target.dtype, spot, node)
        elif (
            "created" in target.marks
            and name in ("add", "sub", "lerp")
            and self._lasting(target, attribute)
            and not self._of_this_pass(marks)
        ):
            self._long_lived(target.dtype, target.spot, target.origin, node)

    def recurrence(self, value: Tensor, node: Any) -> None:
        """A recurrence keeps its running value low at each step."""
        self.torch.facts.add(
            Kind.HOLDS, self.torch.spot(node), value.dtype, Role.REDUCTION, None, "", pattern="running"
        )

    def _of_this_pass(self, marks: frozenset[str]) -> bool:
        """Whether what is added belongs to one forward pass: activations that are summed, not a loss that is logged."""
        return "differentiable" in marks and "loss" not in marks and self.torch.grad()

    def _lasting(self, target: Tensor, attribute: bool) -> bool:
        loops = self.torch.loops()
        return attribute or (len(loops) > len(target.loops) and loops[: len(target.loops)] == target.loops)

    def _long_lived(self, dtype: Dtypes | None, spot: Spot | None, origin: Spot | None, node: Any) -> None:
        self.torch.facts.add(
            Kind.HOLDS,
            origin or spot or self.torch.spot(node),
            dtype,
            Role.ACCUMULATOR,
            ("it is updated from itself here", self.torch.spot(node)),
            "",
            what="running",
        )

    def trainer(self, model: Value, arguments: Instance, node: Any) -> None:
        """A framework's trainer builds its optimizer on the model's parameters as they are."""
        fp16 = constant(arguments.store.get("fp16")) is True
        for _, param in parameters(self.torch, model):
            if not is_low(param.dtype) or not self._trainable(param) or not param.dtype:
                continue
            attrs: dict[str, Any] = {"trainer_fp16": True} if fp16 and param.dtype == frozenset({"float16"}) else {}
            spot = param.store.get("spot") or self.torch.spot(node)
            self.torch.facts.add(
                Kind.HOLDS,
                spot,
                param.dtype,
                Role.MASTER_WEIGHT,
                ("the trainer is built here", self.torch.spot(node)),
                "the trainer's optimizer updates them in place",
                **attrs,
            )
            return

    # ---- loss scaling

    def scaler(self, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
        """`GradScaler(...)`."""
        given = kwargs.get("enabled")
        enabled = True if given is None else truth(given)
        if "\0rest" in kwargs:
            enabled = None
        made = Scaler({"sharded": name.endswith("ShardedGradScaler")}, enabled, self.torch.spot(node))
        self.scalers.append(made)
        if enabled is not False:
            self.saw_scaler = True
        growth = float_constant(kwargs.get("growth_interval"))
        factor = float_constant(kwargs.get("growth_factor"))
        if enabled is not False and ((growth is not None and growth >= FIXED_INTERVAL) or factor == 1.0):
            self.torch.facts.add(
                Kind.LOSS_SCALING,
                self.torch.spot(node),
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
            self.torch.facts.add(
                Kind.LOSS_SCALING,
                self.torch.spot(node),
                "",
                Role.LOSS_SCALE,
                None,
                f"init_scale={value:g} overflows float16 gradients until it has been halved often enough",
                extreme=True,
                dynamic=True,
                scale=value,
            )
        return made

    def _has(self, state: State, kind: str) -> bool:
        return any(event[0] == kind for event in state)

    def _update(self, change: Any) -> None:
        self.torch.interpreter.set_paths(change(state) for state in self.torch.interpreter.paths)

    def scaler_method(self, made: Scaler, name: str, args: list[Value], node: Any) -> Value:
        """A method of a GradScaler."""
        if name == "scale":
            return self._scale(made, args, node)
        if name == "unscale_":
            self._unscale(made, args[0] if args else unknown(), node)
        elif name == "step":
            self._scaler_step(made, args[0] if args else unknown(), node)
        elif name == "update":
            self._scaler_update(made, node)
        elif name == "get_scale":
            return Number(from_scale=True)
        elif name == "state_dict":
            self.scaler_saved = True
            return StateDict("scaler")
        elif name == "is_enabled":
            return Const(made.enabled) if made.enabled is not None else unknown()
        return unknown()

    def _scale(self, made: Scaler, args: list[Value], node: Any) -> Value:
        loss = ops.as_tensor(self.torch, args[0]) if args else unknown()
        if made.enabled is False:
            return loss
        marks = ops.marks_of([loss])
        if "penalty" in marks and self.penalty is not None:
            self.torch.facts.add(
                Kind.OP,
                self.penalty,
                "",
                None,
                ("they are penalised in the loss here", self.torch.spot(node)),
                op="gradient-penalty-scaled",
            )
        kinds = {"float16" if "float16" in marks else "bfloat16" if "bfloat16" in marks else "unknown"}
        self.losses.setdefault(id(made.store), set()).update(kinds)
        if isinstance(loss, Tensor):
            from dataclasses import replace

            return replace(loss, marks=loss.marks | {"scaled", f"scaler:{id(made.store)}"})
        return Opaque(marks=marks | {"scaled", f"scaler:{id(made.store)}"})

    def _identity(self, optimizer: Value) -> int:
        found = options(optimizer)[0]
        return id(found.store) if isinstance(found, (Optimizer, Instance, Opaque)) else id(found)

    def _unscale(self, made: Scaler, optimizer: Value, node: Any) -> None:
        key, which = id(made.store), self._identity(optimizer)
        states = self.torch.interpreter.paths
        event = ("unscaled", key, which)
        always = ("unscaled-always", key, which)
        if states and (all(event in s for s in states) or any(always in s for s in states)):
            self._misuse("unscale-twice", node, True)
        # What no condition guards happens in each turn of the loop, whether or not a step follows.
        self._update(lambda s: s | {event} | (frozenset() if self._has(s, "assume") else {always}))
        self._float16_gradients(optimizer, node)

    def _float16_gradients(self, optimizer: Value, node: Any) -> None:
        params: tuple[Value, ...] = ()
        for option in options(optimizer):
            if isinstance(option, Optimizer):
                params = option.store["params"]
            elif isinstance(option, Instance) and "param_groups" in option.store:
                params = tuple(self.collect(option.store["param_groups"]))
        for param in params:
            if isinstance(param, Param) and param.dtype == frozenset({"float16"}) and self._trainable(param):
                made_low = param.store.get("origin") if "float16" in (param.store.get("dtype") or ()) else None
                spot = param.store.get("spot") or made_low
                self.torch.facts.add(
                    Kind.UNSCALE,
                    spot or self.torch.spot(node),
                    "float16",
                    None,
                    ("they are unscaled here", self.torch.spot(node)),
                    'PyTorch raises "Attempting to unscale FP16 gradients."',
                )
                return

    def _misuse(self, word: str, node: Any, raises: bool) -> None:
        self.torch.facts.add(Kind.SCALER_CALL, self.torch.spot(node), misuse=word, raises=raises)

    def _scaler_step(self, made: Scaler, optimizer: Value, node: Any) -> None:
        torch = self.torch
        key, which = id(made.store), self._identity(optimizer)
        self.stepped_scalers.add(key)
        self._float16_gradients(optimizer, node)
        self._under_autocast(node)
        for option in options(optimizer):
            self.stepped(option, node)
            if isinstance(option, Instance):
                torch.run_step(option, node)
        if made.enabled is False:
            return
        states = torch.interpreter.paths
        clipped = [e for s in states for e in s if e[0] == "clipped" and e[1] == key]
        for event in clipped:
            torch.facts.add(
                Kind.CLIP,
                torch.known_spot(event[2]),
                "",
                Role.GRADIENT,
                ("the scaler steps here", torch.spot(node)),
                "",
                scaled=True,
            )
        again = ("stepped", key, which)
        if states and all(again in s for s in states):
            torch.facts.add(Kind.SCALER_STEP, torch.spot(node), update="missing")
        elif any(again in s for s in states):
            self.never_updated.append((key, torch.spot(node)))
        stale = [e for s in states for e in s if e[0] == "updated" and e[1] == key]
        if stale and all(any(e[0] == "updated" and e[1] == key for e in s) for s in states):
            torch.facts.add(
                Kind.SCALER_CALL,
                torch.known_spot(stale[0][2]),
                "",
                None,
                ("this optimizer's gradients carry the scale from before that update", torch.spot(node)),
                misuse="update-per-optimizer",
                raises=False,
            )
        self._update(
            lambda s: (
                frozenset(e for e in s if not (e[0] in ("pending", "clipped", "manual") and e[1] in (key, None)))
                | {again}
            )
        )

    def _scaler_update(self, made: Scaler, node: Any) -> None:
        key = id(made.store)
        self.updates.add(key)
        states = self.torch.interpreter.paths
        relevant = [s for s in states if any(e[0] == "pending" and e[1] == key for e in s)]
        if (
            made.enabled
            and relevant
            and len(relevant) == len(states)
            and not any(e[0] in ("stepped", "unscaled") for s in states for e in s)
        ):
            self._misuse("update-without-step", node, True)
        self.torch.remember(node)
        event = ("updated", key, id(node))
        self._update(
            lambda s: (
                frozenset(e for e in s if e[0] not in ("stepped", "unscaled", "unscaled-always") or e[1] != key)
                | ({event} if any(e[0] == "stepped" and e[1] == key for e in s) else frozenset())
            )
        )

    def clip(self, args: list[Value], kwargs: dict[str, Value], node: Any) -> None:
        """Gradients are clipped: noted on each path, and reported when the scaler steps on that path."""
        limit = kwargs.get("max_norm", kwargs.get("clip_value", args[1] if len(args) > 1 else None))
        if isinstance(limit, Number) and limit.from_scale:
            return
        states = self.torch.interpreter.paths
        pending = [s for s in states if self._has(s, "pending")]
        if not pending or any(self._has(s, "unscaled") or self._has(s, "manual") for s in pending):
            return
        if limit is not None and float_constant(limit) == float("inf"):
            return
        self.torch.remember(node)

        def change(state: State) -> State:
            keys = {e[1] for e in state if e[0] == "pending"}
            return state | {("clipped", key, id(node)) for key in keys}

        self._update(change)

    def gradients_cleared(self) -> None:
        """`zero_grad()` or `p.grad = None`."""
        self.cleared = True
        self._update(lambda s: frozenset(e for e in s if e[0] not in ("clipped", "summed")))

    def gradient_written(self, node: Any) -> None:
        """Gradients were changed in place by hand, perhaps to unscale them."""
        if any(self._has(s, "pending") for s in self.torch.interpreter.paths):
            self._update(lambda s: s | {("manual", None)})

    # ---- backward

    def backward(self, loss: Value, node: Any) -> None:
        """`loss.backward()` and `torch.autograd.backward(loss)`."""
        torch = self.torch
        region = torch.autocast()
        if region is not None and region.spot is not None and region.enabled is not False:
            torch.facts.add(
                Kind.BACKWARD, torch.spot(node), "", None, ("the region begins here", region.spot), autocast=True
            )
        loss = ops.as_tensor(torch, loss)
        marks = ops.marks_of([loss])
        if isinstance(loss, Tensor) and loss.low and "hand_scaled" not in marks:
            torch.facts.add(
                Kind.HOLDS,
                (loss.low_at if "loss" in loss.marks else None) or loss.spot or torch.spot(node),
                loss.dtype,
                Role.LOSS,
                ("backward starts from it here", torch.spot(node)),
            )
        self._sum_gradients(marks, node)
        keys = [mark.split(":")[1] for mark in marks if mark.startswith("scaler:")]
        if keys:
            self.scaled_backward([int(key) for key in keys], node)
        elif "float16" in marks and not marks & {"hand_scaled", "scaled"}:
            self.unscaled_backward.append((torch.spot(node), torch.float16_region))

    def _sum_gradients(self, marks: frozenset[str], node: Any) -> None:
        """A second backward before the gradients of low parameters are cleared adds to them in their dtype."""
        low = frozenset(mark.removeprefix("weights:") for mark in marks if mark.startswith("weights:"))
        if not low:
            return
        states = self.torch.interpreter.paths
        if any(("summed", id(node)) in s for s in states):
            self.summed.append((self.torch.spot(node), low))
        self._update(lambda s: s | {("summed", id(node))})

    def scaled_backward(self, keys: list[int], node: Any) -> None:
        states = self.torch.interpreter.paths
        for key in keys:
            lingers = [
                any(e[0] == "unscaled" and e[1] == key and ("stepped", key, e[2]) not in s for e in s) for s in states
            ]
            certain = any(
                e[0] == "unscaled-always" and e[1] == key and ("stepped", key, e[2]) not in s for s in states for e in s
            )
            if states and (all(lingers) or certain) and len(self.optimizers) + len(self.custom) == 1:
                self._misuse("backward-after-unscale", node, False)
            self._update(
                lambda s, key=key: (
                    frozenset(e for e in s if not (e[0] == "updated" and e[1] == key)) | {("pending", key)}
                )
            )

    # ---- reduction between ranks

    def comm_hook(self, values: list[Value], node: Any) -> None:
        """`model.register_comm_hook(state, hook)`."""
        for value in values:
            if isinstance(value, Ref):
                name = value.name.rsplit(".", 1)[-1]
                dtype = {"fp16_compress_hook": "float16", "bf16_compress_hook": "bfloat16"}.get(name)
                if dtype:
                    self.torch.facts.add(
                        Kind.HOLDS, self.torch.spot(node), dtype, Role.GRADIENT_REDUCTION, None, name, chosen="explicit"
                    )

    def mixed_precision(self, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> None:
        """FSDP's MixedPrecision and MixedPrecisionPolicy: an unset reduce_dtype is param_dtype."""
        param = ops.dtype_argument(self.torch, kwargs.get("param_dtype", args[0] if args else None))
        reduce = ops.dtype_argument(self.torch, kwargs.get("reduce_dtype", args[1] if len(args) > 1 else None))
        if "\0rest" in kwargs:
            return
        dtype = ops.names(reduce) if reduce is not None else ops.names(param)
        if is_low(dtype):
            self.torch.facts.add(
                Kind.HOLDS,
                self.torch.spot(node),
                dtype,
                Role.GRADIENT_REDUCTION,
                None,
                "reduce_dtype is not set, so param_dtype is used" if reduce is None else "",
                chosen="default" if reduce is None else "explicit",
            )

    def reduced(self, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> None:
        """A collective of torch.distributed: gradients that are summed between ranks in low precision."""
        if not name.startswith(("all_reduce", "reduce", "_reduce_scatter")):
            return
        values = [ops.as_tensor(self.torch, a) for a in (*args[:2], *kwargs.values())]
        for value in values:
            if isinstance(value, Tensor) and value.low and "gradient" in value.marks:
                self.torch.facts.add(
                    Kind.HOLDS,
                    self.torch.spot(node),
                    value.dtype,
                    Role.GRADIENT_REDUCTION,
                    None,
                    name,
                    chosen="explicit",
                )
                return

    # ---- checkpoints

    def save(self, value: Value, node: Any) -> None:
        """`torch.save(value, path)`."""
        if isinstance(value, Dict) and value.kind == "dict":
            if any(isinstance(v, Opaque) and _may_hold_scaler(k) for k, v in value.store.items()):
                self.scaler_saved = True
            if any(self._is_optimizer_state(v) for v in value.store.values()):
                self.saves.append((self.torch.spot(node), True))
                for held in value.store.values():
                    self._low_weights_saved(held, node)

    def _low_weights_saved(self, value: Value, node: Any) -> None:
        """Weights that were cast low are written beside the optimizer that goes on training them."""
        if isinstance(value, Dict) and value.kind == "state_dict":
            tensor = value.store.get(ANY)
            if isinstance(tensor, Tensor) and tensor.low and self.optimizers:
                held = [p for o in self.optimizers for p in o.store["params"]]
                if held and all(p.dtype is not None and not is_low(p.dtype) for p in held):
                    return
                self.torch.facts.add(
                    Kind.CHECKPOINT,
                    self.torch.spot(node),
                    tensor.dtype,
                    Role.MASTER_WEIGHT,
                    ("the weights were cast here", tensor.spot),
                    low=True,
                )

    def _is_optimizer_state(self, value: Value) -> bool:
        return isinstance(value, StateDict) and value.of == "optimizer"

    # ---- the end

    def _bare_regions(self) -> None:
        """A region without a dtype whose default is not what the other regions of its device say."""
        for region in self.regions:
            same = [r.dtype for r in self.regions if r.dtype_given and r.devices == region.devices]
            if region.dtype_given or not same or None in same or len(set(same)) != 1 or region.spot is None:
                continue
            if region.dtype is not None and len(region.dtype) == 1 and region.dtype != same[0]:
                self.torch.facts.add(Kind.AUTOCAST, region.spot, region.dtype, enabled=True, dtype_given=False)

    def finish(self) -> None:
        """Reports what only the whole file can tell."""
        torch = self.torch
        for made in self.optimizers:
            if not made.store.get("examined"):
                self.examine(made)
        for spot, low in self.summed if self.cleared else ():
            torch.facts.add(Kind.HOLDS, spot, low, Role.GRADIENT_ACCUMULATION, None, ".grad has the parameters' dtype")
        if not self.saw_scaler and not torch.outside_scaling:
            for spot, region in self.unscaled_backward:
                torch.facts.add(
                    Kind.HOLDS,
                    spot,
                    "float16",
                    Role.GRADIENT,
                    ("float16 comes from here", region),
                    "",
                    loss_scaling="none",
                )
            for spot, made_low in self.low_adapters if self.unscaled_backward else ():
                torch.facts.add(
                    Kind.HOLDS,
                    spot,
                    "float16",
                    Role.ADAPTER_PARAMETER,
                    ("they became float16 here", made_low),
                    "",
                    loss_scaling="none",
                )
        self._bare_regions()
        for scaler in self.scalers:
            seen = self.losses.get(id(scaler.store))
            if scaler.enabled and seen == {"bfloat16"} and scaler.spot is not None:
                torch.facts.add(
                    Kind.LOSS_SCALING, scaler.spot, "bfloat16", Role.LOSS_SCALE, None, "", needed=False, dynamic=True
                )
        for key, spot in self.never_updated:
            if key not in self.updates:
                torch.facts.add(Kind.SCALER_STEP, spot, update="missing")
        live = any(s.enabled is not False and id(s.store) in self.stepped_scalers for s in self.scalers)
        if live and not self.scaler_saved:
            for spot, _ in self.saves:
                torch.facts.add(Kind.CHECKPOINT, spot, saves_optimizer=True, saves_scaler=False)


def _may_hold_scaler(key: Any) -> bool:
    return not isinstance(key, str) or bool(re.search(r"scal|amp|extra|state|other|misc", key)) or key == ANY
