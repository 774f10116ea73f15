"""Turns what a checkpoint holds into Facts: who held which dtype, what is missing, and which float32 is hollow."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from precaudit.checkpoint import content
from precaudit.checkpoint.folders import Checkpoint
from precaudit.checkpoint.formats import Contents
from precaudit.checkpoint.leaves import Keys, Tensor
from precaudit.checkpoint.roles import Names, Part, proves_scaling, sort
from precaudit.checkpoint.values import SAMPLE
from precaudit.model.vocabulary import LOW, Fact, Kind, Role, Scalar, Site

MOSTLY = 0.9
"""Share of tensors, and of elements, from which a checkpoint counts as hollow: a release keeps a few in float32."""
NAMED = re.compile(r"(?:^|\.)state\.(.+)$")
"""Optimizer state that is kept under its parameter's name, `optim.state.layers.0.weight`, or number."""
LIKE_PARAMETER = frozenset("exp_avg exp_avg_sq max_exp_avg_sq momentum_buffer square_avg grad_avg exp_inf".split())
"""State that torch.optim makes with zeros_like(parameter). Source: torch/optim/adam.py, sgd.py, rmsprop.py."""
ROLES = {
    Part.ADAPTER: Role.ADAPTER_PARAMETER,
    Part.QUANTIZED: Role.QUANTIZED_STORAGE,
    Part.STATISTICS: Role.NORM_RUNNING_STATISTICS,
    Part.POSITIONS: Role.POSITIONS,
    Part.AVERAGE: Role.ACCUMULATOR,
    Part.MASTER: Role.MASTER_WEIGHT,
    Part.MOMENT: Role.OPTIMIZER_STATE,
    Part.COMPENSATION: Role.OPTIMIZER_STATE,
}
"""What most parts are, whatever stands beside them; a weight's role depends on that."""


class Held(NamedTuple):
    """One tensor of the checkpoint."""

    file: Path
    keys: Keys
    tensor: Tensor
    part: Part

    @property
    def name(self) -> str:
        """Its last name: `exp_avg`, `weight`."""
        return self.dotted.rpartition(".")[2]

    @property
    def dotted(self) -> str:
        full = ".".join(self.keys)
        return full.removesuffix(".codes") if self.part is Part.MOMENT else full

    @property
    def parameter(self) -> str:
        """What it belongs to, where it is optimizer state: `optimizer.state.0` of `optimizer.state.0.exp_avg`."""
        return self.dotted.rpartition(".")[0]


@dataclass(slots=True)
class Holdings:
    """What one checkpoint holds, sorted by what it is for."""

    checkpoint: Checkpoint
    tensors: list[Held] = field(default_factory=list)
    optimizer: list[Path] = field(default_factory=list)
    """The files in which an optimizer is saved."""
    optimized: int = 0
    """Parameters in its param_groups."""
    scales: list[tuple[Path, str]] = field(default_factory=list)
    """Loss scales other than 1: the file and the dtype; a Python float is a float64."""
    scaler: bool = False
    """A loss scaler is saved, an idle one too."""
    proof: str = ""
    """What says that a float16 loss was scaled."""
    steps: list[float] = field(default_factory=list)
    """The optimizer's step counters."""
    counters: list[Held] = field(default_factory=list)
    """Those of them that are tensors."""
    on_cpu: bool = False

    def add(self, file: Path, contents: Contents) -> None:
        """Takes in the contents of one of its files."""
        names = Names(contents.leaves, contents.flat)
        if names.optimizers:
            self.optimizer.append(file)
        for (keys, value), part in sort(contents.leaves, names):
            if isinstance(value, Tensor):
                self.tensors.append(Held(file, keys, value, part))
            if part is Part.STEP and names.in_optimizer(keys):
                self._count(content.scalar(value) if isinstance(value, Tensor) else value)
                if isinstance(value, Tensor):
                    self.counters.append(self.tensors[-1])
            elif part is Part.SCALER:
                self.scaler = True
                scale = content.scalar(value) if isinstance(value, Tensor) else value
                if keys[-1] != "_growth_tracker" and isinstance(scale, (int, float)) and scale not in (0, 1):
                    self.scales.append((file, value.dtype if isinstance(value, Tensor) else "float64"))
            elif "params" in keys and "param_groups" in keys:
                self.optimized += 1
            elif setting := proves_scaling(keys, value):
                self.proof = self.proof or f"{setting} in {file.name}"
            elif keys and keys[-1] in ("use_cpu", "no_cuda") and value is True:
                self.on_cpu = True

    def _count(self, steps: object) -> None:
        if isinstance(steps, (int, float)):
            self.steps.append(float(steps))

    def of(self, *parts: Part) -> list[Held]:
        return [held for held in self.tensors if held.part in parts]

    @property
    def stepped(self) -> bool:
        """Whether the optimizer that is saved here has taken a step; state without a counter was made by one."""
        if self.steps:
            return max(self.steps) > 0
        return bool(self.of(Part.MOMENT)) or (bool(self.optimizer) and self.checkpoint.steps > 0)


def facts_of(holdings: Holdings, shown: str) -> tuple[list[Fact], list[str]]:
    """The Facts of one checkpoint by its dtypes, and notes on what was sampled. `shown` is its path for the reader."""
    maker = Maker(holdings, shown)
    found = [*maker.held(), *maker.low(), *maker.scaling()]
    hollow, notes = maker.hollow()
    return [*found, *hollow], notes


class Maker:
    """Makes the Facts of one checkpoint, and knows which of its tensors an optimizer trains."""

    def __init__(self, holdings: Holdings, shown: str) -> None:
        self.holdings, self.shown = holdings, shown
        self.masters = holdings.of(Part.MASTER)
        self.moments = holdings.of(Part.MOMENT)
        self.trained = trained(holdings)
        self.compensated = bool(holdings.of(Part.COMPENSATION))

    def role(self, held: Held) -> Role | None:
        if held.part is not Part.WEIGHT:
            return ROLES.get(held.part)
        return Role.MASTER_WEIGHT if not self.masters and id(held) in self.trained else Role.FORWARD_WEIGHT

    def held(self) -> Iterator[Fact]:
        """One HOLDS Fact per role, dtype and reason; bytes that several tensors share are counted once."""
        groups: dict[tuple[Role, str, str], list[Held]] = {}
        for held in self.holdings.tensors:
            role = self.role(held)
            if role is None:
                continue
            because = ""
            if held.part is Part.MOMENT and self.is_blockwise(held):
                because = "block-wise"
            elif held.part is Part.MASTER or (role is Role.MASTER_WEIGHT and self.compensated):
                because = "kahan" if held.tensor.dtype in LOW and self.compensated else ""
            groups.setdefault((role, held.tensor.dtype, because), []).append(held)
        counted: set[object] = set()
        for (role, dtype, because), members in groups.items():
            size = 0
            for member in members:
                key = member.tensor.storage
                if key is None or key not in counted:
                    size += member.tensor.size
                    counted.add(key)
            attrs: dict[str, Scalar] = {"allowed_because": because} if because else {}
            if members[0].part is Part.AVERAGE:
                attrs["what"] = "ema"
            yield Fact(Kind.HOLDS, dtype, role, self.site(members), count=len(members), bytes=size, attrs=attrs)
        for dtype in sorted({dtype for _, dtype in self.holdings.scales}):
            files = [file for file, scale in self.holdings.scales if scale == dtype]
            yield Fact(Kind.HOLDS, dtype, Role.LOSS_SCALE, self.site_of(files), count=len(files))

    def is_blockwise(self, held: Held) -> bool:
        return not held.tensor.dtype.startswith(("float16", "float32", "float64", "bfloat16")) and (
            held.keys[-1] == "codes" or not held.tensor.dtype.startswith("float")
        )

    def low(self) -> Iterator[Fact]:
        """Optimizer state and masters in low precision; a pure export, without an optimizer, has neither."""
        if self.compensated:
            return
        state = [held for held in self.moments if held.tensor.dtype in LOW and not self.is_blockwise(held)]
        for dtype, members in _by_dtype(state):
            names = sorted({held.name for held in members if not held.name.isdigit()})
            count = len({held.parameter for held in members})
            detail = f"{', '.join(names[:4])} of {count:,} parameter{'s' * (count != 1)}".removeprefix(" of ")
            yield self.lowered(dtype, members, Role.OPTIMIZER_STATE, detail)
        for dtype, members in _by_dtype(held for held in self.masters if held.tensor.dtype in LOW):
            yield self.lowered(dtype, members, Role.MASTER_WEIGHT, f"{len(members):,} master weights")
        weights = [h for h in self.holdings.of(Part.WEIGHT) if self.role(h) is Role.MASTER_WEIGHT]
        # torch's optimizers make state in the dtype of the parameter; those of bitsandbytes (state1) and others do not.
        float32_parameters = not state and all(held.name in LIKE_PARAMETER for held in self.moments)
        for dtype, members in _by_dtype(held for held in weights if held.tensor.dtype in LOW):
            share = f"{len(members):,} of {len(weights):,}"
            if float32_parameters and self.moments:
                what = f"{share} weights that its optimizer trains, beside float32 optimizer state"
                yield self.lowered(dtype, members, Role.MASTER_WEIGHT, what)
            else:
                yield self.lowered(dtype, members, Role.MASTER_WEIGHT, share, {"trained_low": True})

    def lowered(
        self, dtype: str, members: Sequence[Held], role: Role, detail: str, more: dict[str, Scalar] | None = None
    ) -> Fact:
        return Fact(
            Kind.CHECKPOINT,
            dtype,
            role,
            self.site(members),
            detail=detail,
            count=len(members),
            bytes=sum(held.tensor.size for held in members),
            attrs={"low": True, "saves_optimizer": True, **(more or {})},
        )

    def scaling(self) -> Iterator[Fact]:
        """An optimizer without the loss scale that the run must have had."""
        mine = self.holdings
        files = [*mine.optimizer, *(held.file for held in self.moments)]
        if not files or mine.scaler:
            return
        proof = "" if mine.on_cpu else mine.proof
        halves = [held for held in mine.of(Part.WEIGHT) if held.tensor.dtype == "float16"]
        if not proof and halves and any(held.tensor.dtype == "float32" for held in self.masters):
            proof = "float16 weights beside float32 masters"
        if proof:
            yield Fact(
                Kind.CHECKPOINT,
                role=Role.LOSS_SCALE,
                site=self.site_of(files),
                detail=f"a float16 loss was scaled: {proof}",
                attrs={"saves_optimizer": True, "saves_scaler": False},
            )

    def hollow(self) -> tuple[list[Fact], list[str]]:
        """Float32 weights that hold only a low dtype's values; where an optimizer has stepped, those that it trains."""
        weights = self.masters or self.holdings.of(Part.WEIGHT, Part.ADAPTER)
        wide = [held for held in weights if held.tensor.dtype == "float32" and held.tensor.numel]
        looks = [(held, seen) for held in wide if (seen := content.look(held.tensor)) is not None]
        telling = [(held, seen) for held, seen in looks if seen.tells]
        restored = self.holdings.stepped and bool(self.moments or self.masters)
        adapters = any(held.part is Part.ADAPTER for held, _ in telling)
        if restored and not self.masters and (self.trained or adapters):
            telling = [(held, seen) for held, seen in telling if id(held) in self.trained]
        whole = sum(seen.seen == held.tensor.numel for held, seen in looks if seen.hollow)
        parts = [held for held, seen in looks if seen.hollow and seen.seen < held.tensor.numel]
        notes = []
        if parts:
            notes.append(
                f"{self.shown}: float32 content: of {len(parts):,} tensor{'s' * (len(parts) != 1)} "
                f"{SAMPLE:,} elements each were looked at, {whole:,} read whole"
            )
        if unread := len(wide) - len(looks):
            notes.append(f"{self.shown}: the content of {unread:,} float32 tensors cannot be read in place")
        empty = [held for held, seen in telling if seen.hollow]
        elements = sum(held.tensor.numel for held, _ in telling)
        share = sum(held.tensor.numel for held in empty) / elements if elements else 0.0
        if not empty or len(empty) < MOSTLY * len(telling) or share < MOSTLY:
            return [], notes
        step = max([*self.holdings.steps, self.holdings.checkpoint.steps]) if self.holdings.steps else 0
        after = f" after {step:,.0f} optimizer step{'s' * (step != 1)}" if restored and step else ""
        kept = Counter[str]()
        for held, seen in telling:
            kept[seen.hollow] += held.tensor.numel if seen.hollow else 0
        fact = Fact(
            Kind.HOLLOW,
            "float32",
            Role.MASTER_WEIGHT if restored else Role.FORWARD_WEIGHT,
            self.site(empty),
            detail=f"{len(empty):,} of {len(telling):,} weights whose content tells{after}",
            count=len(empty),
            bytes=sum(held.tensor.size for held in empty),
            attrs={"checkpoint": True, "restored": restored, "content": kept.most_common(1)[0][0]},
            evidence={"hollow": share},
        )
        return [fact], notes

    def site(self, members: Iterable[Held]) -> Site:
        return self.site_of({held.file for held in members})

    def site_of(self, files: Iterable[Path]) -> Site:
        """The one file that holds it, or the checkpoint where several do."""
        different = {str(file) for file in files}
        return Site(different.pop() if len(different) == 1 else self.shown, 0)


def _by_dtype(members: Iterable[Held]) -> Iterator[tuple[str, list[Held]]]:
    groups: dict[str, list[Held]] = {}
    for held in members:
        groups.setdefault(held.tensor.dtype, []).append(held)
    yield from sorted(groups.items())


def trained(holdings: Holdings) -> set[int]:
    """The ids of the weights and adapters that the saved optimizer trains, as far as names, shapes or counts tell.

    Its state names parameters (torch.distributed.checkpoint), or numbers them, and then has their shapes. Of several
    weights of one shape the adapters are taken first, then those in float32: the reading that speaks for the user.
    """
    weights = holdings.of(Part.ADAPTER, Part.WEIGHT)
    shapes: dict[str, tuple[int, ...]] = {}
    for held in holdings.of(Part.MOMENT):
        shapes[held.parameter] = max(shapes.get(held.parameter, ()), held.tensor.shape, key=_numel)
    names = {match[1] for parameter in shapes if (match := NAMED.search(parameter)) and not match[1].isdigit()}
    named = {id(held) for held in weights if _named(held.keys, names)}
    if named:
        return named
    by_storage: dict[object, list[Held]] = {}
    for held in weights:
        by_storage.setdefault(held.tensor.storage or id(held), []).append(held)
    groups = sorted(
        by_storage.values(), key=lambda group: (group[0].part is not Part.ADAPTER, group[0].tensor.dtype in LOW)
    )
    if not shapes:
        everything = holdings.optimized == len(groups) > 0
        return {id(held) for group in groups for held in group} if everything else set()
    left = Counter(shapes.values())
    found: set[int] = set()
    for group in groups:
        shape = group[0].tensor.shape
        if left[shape] > 0:
            left[shape] -= 1
            found |= {id(held) for held in group}
    return found


def _named(keys: Keys, names: set[str]) -> bool:
    return any(".".join(keys[start:]) in names for start in range(len(keys))) if names else False


def _numel(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
