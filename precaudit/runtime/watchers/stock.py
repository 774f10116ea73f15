"""Takes stock at step boundaries: which tensors hold which role, in which dtype, with the damage measured so far."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ...model.vocabulary import FLOATING, Kind, Role, Site, rounds_to
from .. import torch_private as private
from ..dtypes import DTYPE_NAMES, LOW
from ..events import BackwardEnded, Boundary, Bus, StepEnded, StepUnseen, WindowOpened
from ..process.ledger import Ledger, Observation
from ..trackers.adapters import Adapted
from ..trackers.claims import Accounts
from ..trackers.graph import GraphRecomputed, GraphWalked, Walk
from ..trackers.loss_scale import LossScale
from ..trackers.micro_batches import GradientsReady
from ..trackers.modules import Modules
from ..trackers.optimizers import Held, group_tensors, nbytes, parameters, state_tensors, trained
from ..trackers.steps import Steps
from ..trackers.tensors import Tensors
from ..trackers.window import Window
from . import Watcher
from .updates import Updates

if TYPE_CHECKING:
    from ..trackers.claims import Claim

COUNTER = re.compile(r"step|count|mu_product|eta$|^mu$|^t$")
HYPERPARAMETER = re.compile(r"step|count|beta|lr|decay|momentum|mu_product|eta$|^mu$|^t$")

LOST_BITS = re.compile(r"err|ecc|comp|resid|kahan|low|lost", re.IGNORECASE)
BLOCK_CODES = frozenset({torch.uint8, torch.int8, *(d for d, name in DTYPE_NAMES.items() if name.startswith("float8"))})
"""What block-wise quantised state is stored in; 4-bit codes lie two in a byte."""
FEWEST_CODES = 64
HALVES = frozenset({torch.int16, *({torch.uint16} if hasattr(torch, "uint16") else ())})
"""What the lower half of a float32 number is kept in, beside its upper half as bfloat16."""
LARGEST_TALLY = 255
FEW = 4096


class Moments(NamedTuple):
    """Optimizer state of one dtype."""

    names: dict[str, None]
    owners: dict[int, Tensor]
    tensors: list[Tensor]
    scales: list[Tensor]
    """What belongs to block-wise codes: scales and lookup tables."""


def blocks(kept: Iterable[Held]) -> Iterator[tuple[Held, list[Tensor] | None]]:
    """Each tensor an optimizer keeps, or, for block-wise codes, the codes with their scales and lookup tables.

    Codes are 8-bit tensors of a parameter's size, or of half of it, beside smaller floating ones in the same dict or
    wrapper (https://arxiv.org/abs/2110.02861); without any scale they are something else.
    """
    by_box: dict[Any, list[Held]] = {}
    for held in kept:
        by_box.setdefault(held.box or id(held.tensor), []).append(held)
    for box in by_box.values():
        codes = [h for h in box if h.tensor.dtype in BLOCK_CODES and h.tensor.numel() >= FEWEST_CODES]
        scales = [h.tensor for h in box if _scales(h)] if codes else []
        of_codes, of_scales = {id(h.tensor) for h in codes}, {id(t) for t in scales}
        for held in box:
            if scales and id(held.tensor) in of_codes:
                yield held, scales if held is codes[0] else []
            elif id(held.tensor) not in of_scales:
                yield held, None


def _scalars(kept: Iterable[Held]) -> set[str]:
    """Names of state that is one number for a whole parameter, as step counters are.

    Of a parameter with one element all state is one number: the state of this name beside larger ones tells, or, where
    there are none, whether it is called a counter. A momentum of one element is a momentum.
    """
    numbers: set[str] = set()
    moments: set[str] = set()
    for held in kept:
        if held.parameter is not None:
            if held.tensor.numel() > 1:
                moments.add(held.name)
            elif held.parameter.numel() > 1 or COUNTER.search(held.name):
                numbers.add(held.name)
    return numbers - moments


def _same_size(tensor: Tensor, parameter: Tensor) -> bool:
    return bool(tensor.numel() == private.local(parameter).numel())


def _scales(held: Held) -> bool:
    """Whether this, beside codes, is what they are multiplied by or looked up in."""
    if held.tensor.dtype in BLOCK_CODES or not held.tensor.dtype.is_floating_point or held.tensor.ndim == 0:
        return False
    return bool(held.part) or held.parameter is None or held.tensor.numel() < held.parameter.numel()


class Stock(Watcher):
    """The role rows of one session. Every call replaces what it said of the same optimizer before."""

    def __init__(
        self,
        bus: Bus,
        ledger: Ledger,
        window: Window,
        tensors: Tensors,
        modules: Modules,
        accounts: Accounts,
        loss_scale: LossScale,
        adapted: Adapted,
        steps: Steps,
        updates: Updates,
    ) -> None:
        self._window = window
        self._tensors = tensors
        self._modules = modules
        self._updates = updates
        self._steps = steps
        self._loss_scale = loss_scale
        self._adapted = adapted
        self._accounts = accounts
        self.ledger = ledger
        self.last_backward: Site | None = None
        bus.on(GraphWalked, self._graph_walked)
        bus.on(GraphRecomputed, lambda event: self.of_graph(event.whole))
        bus.on(BackwardEnded, self._backward_ended)
        bus.on(GradientsReady, lambda event: self.of_gradients(*event))
        bus.on(StepUnseen, lambda event: self.label(event.optimizer))
        bus.on(StepEnded, self._step_ended)
        bus.on(Boundary, self._boundary)
        bus.on(WindowOpened, self._window_opened)

    def _graph_walked(self, event: GraphWalked) -> None:
        if event.trains:
            self.last_backward = event.site
            self.of_graph(event.found)

    def _backward_ended(self, event: BackwardEnded) -> None:
        """Training by autograd.grad leaves no `.grad`: its results are the gradients."""
        if event.accumulates or not self._steps.trains or not isinstance(event.results, tuple):
            return
        held: dict[Any, list[int]] = {}
        for gradient in (result for result in event.results if isinstance(result, Tensor)):
            tally = held.setdefault(private.unwrapped(gradient).dtype, [0, 0])
            tally[0] += 1
            tally[1] += nbytes(private.unwrapped(gradient))
        for dtype, (count, size) in held.items():
            seen = Observation(Kind.HOLDS, _name(dtype), Role.GRADIENT, count=count, bytes=size)
            self.ledger.put(("gradients", "autograd.grad", dtype), seen)

    def _step_ended(self, event: StepEnded) -> None:
        if self._window.tracing:
            self.label(event.optimizer)

    def _boundary(self, event: Boundary) -> None:
        for optimizer in event.optimizers:
            self.of_optimizer(optimizer)

    def _window_opened(self, event: WindowOpened) -> None:
        """Until now a reset that no hook tells of, `_foreach_zero_` inside a backward, was not seen."""
        for key in [key for key in self.ledger.observations if isinstance(key, tuple) and key[0] == "accumulation"]:
            del self.ledger.observations[key]

    # -- the graph

    def of_graph(self, found: Walk) -> None:
        """Role rows that one backward shows: activations, matmuls, softmax, norms, forward weights."""
        for dtype, (count, size) in found.activations.items():
            self._row(Role.ACTIVATION, dtype, count, size)
        for role, tally in ((Role.MATMUL_COMPUTE, found.matmuls), (Role.SOFTMAX, found.softmaxes)):
            for dtype, count in tally.items():
                self._row(role, dtype, count, 0)
        for dtype, count in found.norms.items():
            # A library kernel computes its statistics in float32, whatever goes in.
            self._row(Role.NORM_COMPUTATION, torch.float32 if dtype in LOW else dtype, count, 0)
        weights: dict[Any, list[int]] = {}
        for key, leaf in found.leaves.items():
            if key in found.unread:
                continue
            dtype = found.casts_of_leaves.get(key, leaf.dtype)
            held = weights.setdefault(dtype, [0, 0])
            held[0] += 1
            held[1] += leaf.numel() * getattr(dtype, "itemsize", leaf.element_size())
        for dtype, (count, size) in weights.items():
            self._row(Role.FORWARD_WEIGHT, dtype, count, size)

    def _row(self, role: Role, dtype: Any, count: int, size: int) -> None:
        """A role row: the largest seen in one backward."""
        if dtype not in DTYPE_NAMES:
            return
        key = ("row", role, dtype)
        seen = self.ledger.get(key) or self.ledger.put(key, Observation(Kind.HOLDS, DTYPE_NAMES[dtype], role))
        seen.count, seen.bytes = max(seen.count, count), max(seen.bytes, size)

    def holds(self, role: Role, dtype: str) -> bool:
        """Whether something was seen to hold this role in this dtype."""
        return any(
            seen.kind is Kind.HOLDS and seen.role is role and seen.dtype == dtype and seen.confirmed
            for seen in self.ledger.observations.values()
        )

    # -- what a framework keeps beside the optimizer

    def of_claims(self, held: Mapping[tuple[str, Role, str], list[Claim]]) -> None:
        """Role rows by a framework's own account; what the optimizer itself holds is counted with the optimizer."""
        for key in [k for k in self.ledger.observations if isinstance(k, tuple) and k[0] == "claimed"]:
            del self.ledger.observations[key]
        for (framework, role, dtype), claims in held.items():
            rest = [claim for claim in claims if not self._tensors.of(private.local(claim.tensor)).by_optimizer]
            if rest:
                names = dict.fromkeys(claim.detail for claim in rest if claim.detail)
                self.ledger.put(
                    ("claimed", framework, role, dtype),
                    Observation(
                        Kind.HOLDS,
                        dtype,
                        role,
                        detail=f"{framework} {', '.join(names)}".strip(),
                        count=len(rest),
                        bytes=sum(nbytes(claim.tensor) for claim in rest),
                    ),
                )

    # -- gradients

    def of_accumulation(self, held: Mapping[tuple[str, Any], list[Claim]]) -> None:
        """A framework's own sums of several micro-batches' gradients: the most that one backward added to."""
        for (framework, dtype), claims in held.items():
            if dtype not in DTYPE_NAMES:
                continue
            names = dict.fromkeys(claim.detail for claim in claims if claim.detail)
            key = ("accumulator of", framework, dtype)
            seen = self.ledger.get(key) or self.ledger.put(
                key,
                Observation(
                    Kind.HOLDS,
                    DTYPE_NAMES[dtype],
                    Role.GRADIENT_ACCUMULATION,
                    claims[0].site or self.last_backward,
                    detail=f"{framework} {', '.join(names)}, several micro-batches per step",
                ),
            )
            seen.count = max(seen.count, len(claims))
            seen.bytes = max(seen.bytes, sum(nbytes(claim.tensor) for claim in claims))

    def of_gradients(self, optimizer: Any, mine: list[Tensor], micro_batches: Callable[[Tensor], int]) -> None:
        """The dtypes of `.grad` before a step, and which of them are sums over several micro-batches."""
        held: dict[Any, list[int]] = {}
        summed: dict[Any, list[Tensor]] = {}
        for parameter in mine:
            gradient = parameter.grad
            if gradient is None:
                continue
            tally = held.setdefault(gradient.dtype, [0, 0])
            tally[0] += 1
            tally[1] += nbytes(gradient)
            if micro_batches(parameter) >= 2:
                summed.setdefault(gradient.dtype, []).append(parameter)
        for dtype, (count, size) in held.items():
            self.ledger.put(
                ("gradients", id(optimizer), dtype),
                Observation(Kind.HOLDS, _name(dtype), Role.GRADIENT, count=count, bytes=size),
            )
        for dtype, params in summed.items():
            self.ledger.put(
                ("accumulation", id(optimizer), dtype),
                Observation(
                    Kind.HOLDS,
                    _name(dtype),
                    Role.GRADIENT_ACCUMULATION,
                    self.last_backward,
                    self._modules.why_low(params[0]) if dtype in LOW else None,
                    detail=f".grad of {len(params)} parameters, several micro-batches per step",
                    count=len(params),
                    bytes=sum(nbytes(p.grad) for p in params if p.grad is not None),
                ),
            )

    # -- an optimizer

    def label(self, optimizer: Any) -> None:
        """Names the optimizer's tensors."""
        for held in state_tensors(optimizer):
            known = self._tensors.learn(held.tensor)
            if not known.by_optimizer:
                known.by_optimizer, known.slot = True, held.name
        for parameter in parameters(optimizer):
            self._tensors.learn(private.local(parameter)).by_optimizer = True

    def of_optimizer(self, optimizer: Any) -> None:
        """Parameters, masters, state and hyperparameters of one optimizer, as they are now."""
        for key in [k for k in self.ledger.observations if isinstance(k, tuple) and k[:2] == ("stock", id(optimizer))]:
            del self.ledger.observations[key]
        name, site = type(optimizer).__name__, self._modules.built_at.get(optimizer)
        mine = trained(optimizer)
        self._weights(optimizer, name, site, mine)
        self._state(optimizer, name, site, mine)

    def _weights(self, optimizer: Any, name: str, site: Site | None, mine: list[Tensor]) -> None:
        held: dict[tuple[Role, Any], list[Tensor]] = {}
        for parameter in mine:
            own = max((part for _, part in private.parts(parameter)), key=torch.Tensor.numel)
            role = self._weight_role(optimizer, parameter, own)
            if role is not None:
                held.setdefault((role, own.dtype), []).append(parameter)
        for (role, dtype), params in held.items():
            seen = Observation(
                Kind.HOLDS,
                _name(dtype),
                role,
                site,
                self._modules.why_low(params[0]) if dtype in LOW else None,
                self._modules.name(params[0]) if len(params) == 1 else "",
                f"{len(params)}/{len(mine)} parameters of {name}",
                len(params),
                sum(nbytes(p) for p in params),
                {"optimizer": name},
            )
            if dtype in LOW:
                self._updates.of_parameters(seen, params)
                self._compensated(optimizer, seen, params)
                if role is Role.ADAPTER_PARAMETER and self._loss_scale.missing:
                    seen.attrs["loss_scaling"] = "none"
            if role is Role.MASTER_WEIGHT and self._adapted.swapped(params):
                seen.attrs["swapped"] = True
            self._accounts.by.describe(seen, params)
            self.ledger.put(("stock", id(optimizer), role, dtype), seen)

    def _compensated(self, optimizer: Any, seen: Observation, params: Iterable[Tensor]) -> None:
        """Why low-precision parameters may be updated in place: no update is lost, or lost ones even out."""
        kinds = [self._tensors.of(private.local(p)).writes or () for p in params]
        if all(p.dtype is torch.bfloat16 for p in params) and self._holds_lower_halves(optimizer, params):
            seen.attrs["allowed_because"] = "float32-master"
        elif all("kahan" in kind for kind in kinds) or self._carries_lost_bits(optimizer, params):
            seen.attrs["allowed_because"] = "kahan"
        elif all("stochastic" in kind and "update" not in kind for kind in kinds):
            seen.attrs["allowed_because"] = "stochastic-rounding"

    @staticmethod
    def _holds_lower_halves(optimizer: Any, params: Iterable[Tensor]) -> bool:
        """Whether 16-bit integers beside the parameters complete them to float32: weight and remainder are one master.

        They need no name. What else is an integer for each element, a mask or an age, leaves most of its bits unused.
        """
        halves = [h for h in state_tensors(optimizer) if h.tensor.dtype in HALVES]
        filed = {id(h.parameter) for h in halves if h.parameter is not None and _same_size(h.tensor, h.parameter)}
        loose = Counter(h.tensor.numel() for h in halves if h.parameter is None)
        loose.subtract(p.numel() for p in params if id(p) not in filed)
        if not halves or min(loose.values(), default=0) < 0:
            return False
        parts = [h.tensor.detach().reshape(-1)[:FEW].to(torch.int32).abs() for h in halves if h.tensor.numel()]
        return any(int(part.max()) > LARGEST_TALLY for part in parts)

    @staticmethod
    def _carries_lost_bits(optimizer: Any, params: Iterable[Tensor]) -> bool:
        """Whether integers of each parameter's own shape hold the bits that its dtype cannot."""
        held = {
            id(h.parameter)
            for h in state_tensors(optimizer)
            if h.parameter is not None
            and h.tensor.dtype in (torch.int8, torch.int16)
            and h.tensor.shape == h.parameter.shape
            and LOST_BITS.search(h.name)
        }
        return bool(held) and all(id(p) in held for p in params)

    def _weight_role(self, optimizer: Any, parameter: Tensor, own: Tensor) -> Role | None:
        """master_weight unless it is only ever copied from a float32 master; None where that is not known yet."""
        claimed = self._tensors.of(own).claimed
        if claimed is not None:
            return claimed
        if self._adapted.is_adapter(parameter):
            return Role.ADAPTER_PARAMETER
        if own.dtype not in LOW:
            return Role.MASTER_WEIGHT
        known = self._tensors.of(own)
        writes = known.writes
        if writes:
            return Role.MASTER_WEIGHT if writes & {"update", "stochastic"} else None
        if known.copied_from is not None and known.copied_from.expired:  # computed, rounded and dropped
            return Role.MASTER_WEIGHT
        return Role.MASTER_WEIGHT if type(optimizer).__module__.startswith("torch.optim") else None

    def _state(self, optimizer: Any, name: str, site: Site | None, mine: list[Tensor]) -> None:
        moments: dict[Any, Moments] = {}
        scalars: dict[tuple[str, Any], list[Tensor]] = {}
        masters: dict[Any, list[Tensor]] = {}
        kept = list(state_tensors(optimizer))
        scalar = _scalars(kept)
        for held, block in blocks(kept):
            tensor, parameter = held.tensor, held.parameter
            if block is None:
                if not tensor.dtype.is_floating_point:
                    continue
                if tensor.numel() == 1 and (parameter is None or held.name in scalar):
                    scalars.setdefault((held.name, tensor.dtype), []).append(tensor)
                    continue
                if self._is_master(held):
                    masters.setdefault(tensor.dtype, []).append(tensor)
                    continue
            kahan = block is None and self._tensors.of(tensor).compensates
            because = "kahan" if kahan else "" if block is None else "block-wise"
            group = moments.setdefault((because, tensor.dtype), Moments({}, {}, [], []))
            group.names[held.name] = None
            group.tensors.append(tensor)
            group.scales.extend(block or ())
            if parameter is not None:
                group.owners[id(parameter)] = parameter
        adapters = bool(mine) and all(self._adapted.is_adapter(p) for p in mine)
        for (because, dtype), group in moments.items():
            seen = self._moments(name, site, dtype, group, mine)
            seen.attrs["adapter_only"] = adapters
            if because:
                seen.attrs["allowed_because"] = because
            elif dtype in LOW:
                self._updates.of_state(seen, optimizer, group.names, dtype)
                self._eps(optimizer, seen)
            self.ledger.put(("stock", id(optimizer), "state", dtype, because), seen)
        for dtype, tensors in masters.items():
            self._masters(optimizer, name, site, dtype, tensors)
        for key, tensor in group_tensors(optimizer):
            scalars.setdefault((key, tensor.dtype), []).append(tensor)
        for (key, dtype), tensors in scalars.items():
            if dtype in LOW and HYPERPARAMETER.search(key):
                self._hyperparameter(optimizer, name, site, key, tensors)

    def _is_master(self, held: Held) -> bool:
        """Whether this is a sequence of weights: what parameters are copied from, or what began as a copy of one."""
        tensor, parameter = held.tensor, held.parameter
        known = self._tensors.of(tensor)
        if known.is_master or "master" in held.name.lower():
            return True
        return (
            parameter is not None
            and tensor.shape == parameter.shape
            and known.copies_parameter
            and known.moved_by_optimizer
        )

    def _made_at(self, tensors: Iterable[Tensor]) -> Site | None:
        """The user's line that made the first of these that has one."""
        return next((site for site in (self._tensors.of(t).made_at for t in tensors) if site is not None), None)

    def _moments(self, name: str, site: Site | None, dtype: Any, held: Moments, mine: list[Tensor]) -> Observation:
        owners = held.owners
        low = [p for p in owners.values() if private.local(p).dtype in LOW] if dtype in LOW else []
        made = self._made_at(held.tensors)
        of = f" of {len(owners)}/{len(mine)} parameters" if owners else ""
        if owners and not all(p.numel() for p in mine):  # FSDP1 leaves a rank the parameters of its shard
            of = " of each rank's share of the parameters"
        return Observation(
            Kind.HOLDS,
            DTYPE_NAMES[dtype],
            Role.OPTIMIZER_STATE,
            # Low state beside high parameters was made so by the optimizer itself: that line, not its construction.
            made if made is not None and dtype in LOW and owners and not low else site,
            self._modules.why_low(low[0]) if low else None,
            detail=f"{name} {', '.join(sorted(held.names)) or 'state'}{of}",
            count=len(held.tensors),
            bytes=sum(nbytes(t) for t in (*held.tensors, *held.scales)),
            attrs={"optimizer": name, "what": "moment"},
        )

    def _hyperparameter(self, optimizer: Any, name: str, site: Site | None, key: str, tensors: list[Tensor]) -> None:
        dtype = DTYPE_NAMES[tensors[0].dtype]
        made = self._made_at(tensors)
        stops = f"; stops counting at {FLOATING[dtype].max_exact_integer}" if "step" in key else ""
        self.ledger.put(
            ("stock", id(optimizer), "hyperparameter", key, dtype),
            Observation(
                Kind.HOLDS,
                dtype,
                Role.OPTIMIZER_STATE,
                made or site,
                detail=f"{name} {key}{stops}",
                count=len(tensors),
                attrs={"what": "hyperparameter", "key": key, "optimizer": name},
            ),
        )

    def _masters(self, optimizer: Any, name: str, site: Site | None, dtype: Any, tensors: list[Tensor]) -> None:
        """Weights that the optimizer keeps beside the parameters: float32 masters, averages it steps on."""
        kept = f"{len(tensors)} weights that {name} keeps in its state"
        key = ("stock", id(optimizer), Role.MASTER_WEIGHT, dtype)
        seen = self.ledger.get(key)
        if seen is None:
            seen = self.ledger.put(
                key, Observation(Kind.HOLDS, DTYPE_NAMES[dtype], Role.MASTER_WEIGHT, site, attrs={"optimizer": name})
            )
        seen.detail = f"{seen.detail}, and {kept}" if seen.detail else kept
        seen.count += len(tensors)
        seen.bytes += sum(nbytes(tensor) for tensor in tensors)

    def _eps(self, optimizer: Any, state: Observation) -> None:
        """An eps that is nothing in the dtype it is added in. Fused kernels add it in float32."""
        for group in optimizer.param_groups:
            eps = group.get("eps")
            if not isinstance(eps, float) or not eps or group.get("fused"):
                continue
            how = rounds_to(eps, state.dtype)
            if how in ("zero", "subnormal"):
                self.ledger.put(
                    ("stock", id(optimizer), "eps", state.dtype),
                    Observation(
                        Kind.EPS,
                        state.dtype,
                        Role.OPTIMIZER_STATE,
                        state.site,
                        state.cause,
                        detail=f"eps={eps:g} of {type(optimizer).__name__} is {how} in {state.dtype}",
                        count=1,
                        attrs={"rounds_to": how, "value": eps},
                    ),
                )


def _name(dtype: Any) -> str:
    return DTYPE_NAMES.get(dtype, str(dtype))
