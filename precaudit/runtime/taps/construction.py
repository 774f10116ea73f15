"""Remembers where things were made: parameters in low precision, casts of modules, optimizers and scalers.

Known limitations: copies made by `copy.deepcopy` or unpickling carry no registration site, only later casts.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.modules import module as modules
from torch.nn.parameter import is_lazy

from ...model.vocabulary import Cause, Kind, Role, Site
from ..dtypes import DTYPE_NAMES, LOW
from ..events import OptimizerBuilt, ScalerBuilt, StepBegan
from ..process.ledger import Observation
from ..sites import is_user_file, site_of, user_frame, user_site
from ..trackers.holders import Places, held_by, register

if TYPE_CHECKING:
    from ..session import Session

CASTS = ("to", "half", "bfloat16", "float", "double", "type")


class Untied(NamedTuple):
    """A parameter that was replaced in one of the modules that shared it."""

    module: weakref.ref[Any]
    name: str
    others: Places
    site: Site | None


class ConstructionProbe:
    """Owners, casts and construction sites, by weak reference."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.modules = session.modules
        self.holders = session.modules.holders
        self.tensors = session.tensors
        self._depth = 0
        self._untied: dict[tuple[int, str], Untied] = {}
        """Tied parameters that were replaced in one place, until the next step shows whether they are tied again."""
        self._default: tuple[Any, Site | None] = (torch.float32, None)
        session.bus.on(StepBegan, lambda event: self.before_step(event.optimizer))

    def install(self) -> list[Callable[[], None]]:
        guarded = partial(partial, self.session.guard, "what a module is given")
        hooks = [
            modules.register_module_parameter_registration_hook(guarded(self._parameter_registered)),
            modules.register_module_module_registration_hook(guarded(self._module_registered)),
            modules.register_module_buffer_registration_hook(guarded(self._buffer_registered)),
        ]
        undo: list[Callable[[], None]] = [hook.remove for hook in hooks]
        for name in CASTS:
            undo.append(self.session.patch(torch.nn.Module, name, self._around_cast(name)))
        undo.append(self.session.patch(torch.optim.Optimizer, "__init__", self._around_build))
        undo.append(self.session.patch(torch.amp.GradScaler, "__init__", self._around_build))
        undo.append(self.session.patch(torch, "set_default_dtype", self._around_default))
        undo.append(self.session.patch(torch.nn.Module, "load_state_dict", self._around_load))
        return undo

    def _parameter_registered(self, module: Any, name: str, parameter: Any) -> None:
        if isinstance(parameter, Tensor):
            self._see_untying(module, name, parameter)
            self.holders.registered(parameter, module, name)
            self.session.adapters.meet(parameter, user_site)
            self.session.adapters.meet(module, user_site)
            if parameter.dtype in LOW and self.tensors.of(parameter).born_low is None:
                cause = Cause(f"parameters were made in {DTYPE_NAMES[parameter.dtype]}", user_site())
                self.tensors.learn(parameter).born_low = cause

    def _buffer_registered(self, module: Any, name: str, buffer: Any) -> None:
        if isinstance(buffer, Tensor) and buffer.dtype in LOW:
            cause = Cause(f"it was registered in {DTYPE_NAMES[buffer.dtype]}", user_site())
            self.tensors.learn(buffer).low_buffer = cause

    def _see_untying(self, module: Any, name: str, parameter: Tensor) -> None:
        """A parameter that another module holds too is replaced in this one."""
        old = module._parameters.get(name)
        if old is None or old is parameter or is_lazy(old) or is_lazy(parameter):
            return
        others = [(weakref.ref(other), at) for other, at in self.holders.of(old) if other is not module]
        if others and old.shape == parameter.shape:
            self._untied[id(module), name] = Untied(weakref.ref(module), name, others, user_site())

    def _look_at_untied(self) -> None:
        """Before a step: what was tied, and is now two tensors that modules hold, of which this one is trained."""
        untied, self._untied = self._untied, {}
        for ref, name, others, site in untied.values():
            module = ref()
            mine = held_by(module, name) if module is not None else None
            theirs = [held_by(other, at) for other, at in ((r(), at) for r, at in others) if other is not None]
            if isinstance(mine, Tensor) and mine.requires_grad and any(t is not None and t is not mine for t in theirs):
                seen = Observation(
                    Kind.CAST,
                    DTYPE_NAMES.get(mine.dtype, str(mine.dtype)),
                    Role.MASTER_WEIGHT,
                    site,
                    module=self.modules.module_name(module),
                    detail=f"{name} was shared with another module",
                    attrs={"unties": True},
                )
                self.session.ledger.once(("untied", id(module), name), seen)

    def _module_registered(self, module: Any, name: str, submodule: Any) -> None:
        if isinstance(submodule, torch.nn.Module):
            register(self.modules.parents.setdefault(submodule, []), module, name)
            self.session.adapters.meet(module, user_site)

    def _around_cast(self, name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
            def cast(module: Any, *args: Any, **kwargs: Any) -> Any:
                if self._depth:
                    return original(module, *args, **kwargs)
                before: dict[int, Any] = {}
                self.session.guard("cast", self._note_dtypes, module, before)
                self._depth += 1
                try:
                    out = original(module, *args, **kwargs)
                finally:
                    self._depth -= 1
                self.session.guard("cast", self._cast_happened, module, before)
                if name == "half":
                    self.session.guard("half", self._halved, module)
                return out

            return cast

        return wrap

    @staticmethod
    def _note_dtypes(module: Any, dtypes: dict[int, Any]) -> None:
        dtypes.update({id(p): p.dtype for p in (*module.parameters(), *module.buffers())})

    def _cast_happened(self, module: Any, before: dict[int, Any]) -> None:
        low = {p.dtype for p in module.parameters() if p.dtype in LOW and before.get(id(p), p.dtype) is not p.dtype}
        low |= {b.dtype for b in module.buffers() if b.dtype in LOW and id(b) not in before}
        changed = {p.dtype for p in module.parameters() if before.get(id(p), p.dtype) is not p.dtype}
        changed |= {b.dtype for b in module.buffers() if id(b) not in before}
        if not changed:
            return
        words = ", ".join(sorted(DTYPE_NAMES[dtype] for dtype in low or changed))
        cause = Cause(f"parameters were cast to {words}", user_site())
        for child in module.modules():
            self.modules.cast_at[child] = cause
        for buffer in module.buffers():
            if buffer.dtype in LOW and id(buffer) not in before:
                self.tensors.learn(buffer).low_buffer = cause
        held = {id(p) for o in self.session.steps.built for group in o.param_groups for p in group["params"]}
        for parameter in module.parameters():
            if parameter.dtype in LOW:
                self.tensors.learn(parameter).cast = cause
                if id(parameter) in held and before.get(id(parameter), parameter.dtype) is not parameter.dtype:
                    self.tensors.learn(parameter).cast_late = cause

    def _halved(self, module: Any) -> None:
        """`self.half()` inside the module's own methods: the model decides to train in true float16."""
        frame = user_frame()
        if frame is None or frame.f_locals.get("self", self) is not module:
            return
        for parameter in list(module.parameters()):
            self.tensors.learn(parameter).halved_at = site_of(frame)

    def before_step(self, optimizer: Any) -> None:
        """A step on parameters that were cast after this optimizer was built, or by their own module's `half()`."""
        self._look_at_untied()
        mine = [p for group in optimizer.param_groups for p in group["params"] if isinstance(p, Tensor)]
        for parameter in mine:
            site = self.tensors.of(parameter).halved_at
            if site is not None and parameter.dtype is torch.float16 and parameter.requires_grad:
                self.session.ledger.put(
                    ("half", site),
                    Observation(
                        Kind.CONFIG,
                        "float16",
                        Role.MASTER_WEIGHT,
                        site,
                        detail=f"and {type(optimizer).__name__} trains what it halved",
                        count=1,
                        attrs={"key": "half", "precision": "half-call"},
                    ),
                )
                break
        cast = [p for p in mine if self.tensors.of(p).cast_late is not None and p.dtype in LOW]
        cause = self.tensors.of(cast[0]).cast_late if cast else None
        if cause is not None:
            self.session.ledger.put(
                ("cast after", id(optimizer)),
                Observation(
                    Kind.CAST,
                    DTYPE_NAMES[cast[0].dtype],
                    Role.MASTER_WEIGHT,
                    cause.site,
                    detail=f"{len(cast)}/{len(mine)} parameters of {type(optimizer).__name__}, then it stepped",
                    count=len(cast),
                    attrs={"after_optimizer": True},
                ),
            )

    def _around_load(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def load_state_dict(module: Any, *args: Any, **kwargs: Any) -> Any:
            out = original(module, *args, **kwargs)
            self.session.guard("load_state_dict", self._loaded)
            return out

        return load_state_dict

    def _around_default(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def set_default_dtype(*args: Any, **kwargs: Any) -> None:
            original(*args, **kwargs)
            self.session.guard("set_default_dtype", self._default_set)

        return set_default_dtype

    def _loaded(self) -> None:
        self.modules.loaded_at = user_site()

    def _default_set(self) -> None:
        self._default = (torch.get_default_dtype(), user_site())

    def _around_build(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def build(made: Any, *args: Any, **kwargs: Any) -> None:
            original(made, *args, **kwargs)
            self.session.guard("construction", self._built, made)

        return build

    def _built(self, made: Any) -> None:
        site = self._outside_of(made)
        if site is not None and made not in self.modules.built_at:
            self.modules.built_at[made] = site
        if isinstance(made, torch.amp.GradScaler):
            self.session.bus.tell(ScalerBuilt(made))
        if isinstance(made, torch.optim.Optimizer):
            self.session.bus.tell(OptimizerBuilt(made))
            dtype = torch.get_default_dtype()
            if dtype in LOW:
                detail = "it was still so when the optimizer was built"
                self.session.ledger.once(
                    ("default dtype", dtype),
                    Observation(
                        Kind.DEFAULT_DTYPE,
                        DTYPE_NAMES[dtype],
                        Role.MASTER_WEIGHT,
                        self._default[1] or site,
                        detail=detail,
                    ),
                )

    @staticmethod
    def _outside_of(made: Any) -> Site | None:
        """The user's line that called the constructor, not the `super().__init__()` inside the user's subclass."""
        frame = user_frame()
        while frame is not None and is_user_file(frame.f_code.co_filename) and frame.f_locals.get("self") is made:
            frame = frame.f_back
        while frame is not None and not is_user_file(frame.f_code.co_filename):
            frame = frame.f_back
        found = user_site()
        if frame is None or found is None:
            return found
        site = site_of(frame)
        return site._replace(library=found.library if found.line == site.line else "")
