"""What the trace says updates lost, against the same optimizer run on float64 copies at every traced step."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import harness
import pytest
import torch
from torch import Tensor, nn

from precaudit.model.wire import Report
from precaudit.runtime.trackers import flat_steps, samples

Maker = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
LOW = (torch.bfloat16, torch.float16)


class Oracle:
    """Copies an optimizer in float64 before each traced step, and steps the copies when the trace is over.

    By hooks of the optimizer, or else by calls around its step: where there are hooks, the trace follows every op.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, skip: int = 1, steps: int = 2, hooks: bool = True) -> None:
        self.should = self.stuck = 0
        self.error2 = self.step2 = 0.0
        self.state: dict[str, list[int]] = {}
        """State name -> elements that should have moved, elements that did not."""
        self._steps: list[list[Any]] = []
        self._wanted = range(skip, skip + steps)
        self._taken = 0
        if hooks:
            optimizer.register_step_pre_hook(self.gradients_are_ready)
            optimizer.register_step_post_hook(self.step_is_over)

    def gradients_are_ready(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if self._taken in self._wanted:
            twin, parameters = _wide(optimizer)
            self._steps[self._taken - self._wanted.start :] = []  # a closure comes after the hook
            self._steps.append([twin, [_everything(optimizer, p) for p in parameters]])

    def step_is_over(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if self._taken in self._wanted:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            self._steps[-1].append([_everything(optimizer, p) for p in parameters])
        self._taken += 1

    def count(self) -> None:
        """Steps the copies, and counts what the first optimizer lost."""
        for twin, before, after in self._steps:
            twin.step()
            copies = [p for group in twin.param_groups for p in group["params"]]
            for was, now, p in zip(before, after, copies, strict=True):
                exact = _everything(twin, p)
                for name in was:
                    if was[name].dtype not in LOW:
                        continue
                    should = exact[name].float() != was[name].float()
                    stuck = should & (now[name] == was[name])
                    tally = self.state.setdefault(name, [0, 0])
                    tally[0], tally[1] = tally[0] + int(should.sum()), tally[1] + int(stuck.sum())
                self.error2 += float((now[""].double() - exact[""]).square().sum())
                self.step2 += float((exact[""] - was[""].double()).square().sum())
        self.should, self.stuck = self.state.pop("")

    @property
    def lost(self) -> float:
        return self.stuck / self.should

    @property
    def error(self) -> float:
        return math.sqrt(self.error2 / self.step2)

    @property
    def frozen(self) -> float | None:
        """Of the second moments, or of all state where there are none, what could not move."""
        chosen = [tally for name, tally in self.state.items() if "sq" in name or "second" in name or "var" in name]
        should, stuck = (sum(tally[i] for tally in chosen or self.state.values()) for i in (0, 1))
        return stuck / should if should else None


def _everything(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """The parameter, under "", and its state, as they are now."""
    held = {name: t for name, t in optimizer.state[parameter].items() if isinstance(t, Tensor)}
    return {name: t.detach().clone() for name, t in {"": parameter, **held}.items()}


def _wide(optimizer: torch.optim.Optimizer) -> tuple[torch.optim.Optimizer, list[Tensor]]:
    """A copy of the optimizer whose parameters, gradients and state are float64, and the parameters themselves."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    scale = getattr(optimizer, "grad_scale", None)
    copies = {}
    for p in parameters:
        copies[id(p)] = nn.Parameter(p.detach().double())
        if p.grad is not None:
            copies[id(p)].grad = p.grad.double() / (1.0 if scale is None else scale.double())
    twin = copy.copy(optimizer)
    left = ("state", "param_groups", "grad_scale", "found_inf")
    twin.__dict__ = {k: copy.copy(v) for k, v in vars(optimizer).items() if k not in left}
    twin._optimizer_step_pre_hooks = OrderedDict()
    twin._optimizer_step_post_hooks = OrderedDict()
    plain = {"fused": False} if optimizer.defaults.get("fused") else {}
    twin.param_groups = [{**g, **plain, "params": [copies[id(p)] for p in g["params"]]} for g in optimizer.param_groups]
    twin.state = type(optimizer.state)(optimizer.state.default_factory)  # type: ignore[attr-defined]
    for p in parameters:
        if p in optimizer.state:
            twin.state[copies[id(p)]] = {key: _wide_value(value) for key, value in optimizer.state[p].items()}
    return twin, parameters


def _wide_value(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().double() if value.dtype in LOW else value.detach().clone()
    return copy.deepcopy(value)


def net(dtype: torch.dtype, width: int = 40) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, width), nn.GELU(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 8)).to(
        dtype
    )


def train(make: Maker, dtype: torch.dtype, loop: str = "plain", **settings: Any) -> tuple[Oracle, Report]:
    """A traced run, and what the oracle counted in the steps that were traced."""
    model = net(dtype, settings.pop("width", 40))
    hooks = settings.pop("hooks", True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=loop == "scaler")
    micro = 4 if loop == "micro" else 1
    size = 1 if dtype is torch.bfloat16 else 100
    oracles: list[Oracle] = []

    def run() -> None:
        optimizer = make(list(model.parameters()))
        oracles.append(Oracle(optimizer, hooks=hooks))

        def backward() -> Tensor:
            optimizer.zero_grad()
            for _ in range(micro):
                x = torch.randn(32, 24).to(dtype)
                loss = size * model(x).float().square().mean() / micro
                scaler.scale(loss).backward()
            if loop == "closure":
                oracles[0].gradients_are_ready(optimizer)
            return loss

        for _ in range(4):
            if loop == "closure":
                optimizer.step(backward)  # type: ignore[arg-type]
                continue
            backward()
            if loop == "clipped":
                nn.utils.clip_grad_norm_(model.parameters(), 0.05)
            if hooks:
                scaler.step(optimizer)
            else:
                scaler.unscale_(optimizer) if loop == "scaler" else None
                oracles[0].gradients_are_ready(optimizer)
                scaler.step(optimizer)
                oracles[0].step_is_over(optimizer)
            scaler.update()

    report = harness.trace_call(run, **{"values": "full", **settings})
    assert not [note for note in report.coverage.notes if "could not follow" in note], report.coverage.notes
    return oracles[0], report


def measured(report: Report, role: str, dtype: torch.dtype) -> dict[str, float]:
    """The numbers of the one Fact about this role in this dtype."""
    name = str(dtype).removeprefix("torch.")
    held = [f for f in report.facts if (f["kind"], f["role"], f["dtype"]) == ("holds", role, name)]
    moments = [f for f in held if f["attrs"].get("what") != "hyperparameter"]
    assert len(moments) == 1, moments
    evidence: dict[str, float] = moments[0]["evidence"]
    return evidence


def compare(oracle: Oracle, report: Report, dtype: torch.dtype, rel: float = 0.01) -> None:
    """The report's numbers are the oracle's."""
    oracle.count()
    assert oracle.should > 1000
    weights = measured(report, "master_weight", dtype)
    assert weights["updates_lost"] == pytest.approx(oracle.lost, rel=rel, abs=2e-3)
    assert weights["applied_update_error"] == pytest.approx(oracle.error, rel=rel)
    if oracle.frozen is not None:
        state = measured(report, "optimizer_state", dtype)
        assert state["state_frozen"] == pytest.approx(oracle.frozen, rel=rel, abs=2e-3)


T = torch.optim
TORCH: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": lambda p, **k: T.SGD(p, lr=1e-2, **k),
    "momentum": lambda p, **k: T.SGD(p, lr=1e-2, momentum=0.9, **k),
    "nesterov": lambda p, **k: T.SGD(p, lr=1e-2, momentum=0.9, nesterov=True, weight_decay=1e-2, **k),
    "Adam": lambda p, **k: T.Adam(p, lr=1e-3, eps=1e-5, **k),
    "AdamW": lambda p, **k: T.AdamW(p, lr=1e-3, eps=1e-5, **k),
    "amsgrad": lambda p, **k: T.AdamW(p, lr=1e-3, eps=1e-5, amsgrad=True, **k),
    "RMSprop": lambda p, **k: T.RMSprop(p, lr=1e-3, eps=1e-5, **k),
    "centered": lambda p, **k: T.RMSprop(p, lr=1e-3, eps=1e-4, centered=True, momentum=0.9, **k),
    "Adagrad": lambda p, **k: T.Adagrad(p, lr=1e-2, eps=1e-5, **k),
    "Adadelta": lambda p, **k: T.Adadelta(p, lr=1.0, eps=1e-4, **k),
    "NAdam": lambda p, **k: T.NAdam(p, lr=1e-3, eps=1e-5, **k),
    "RAdam": lambda p, **k: T.RAdam(p, lr=1e-3, eps=1e-5, **k),
    "Adamax": lambda p, **k: T.Adamax(p, lr=1e-3, eps=1e-5, **k),
    "ASGD": lambda p, **k: T.ASGD(p, lr=1e-2, **k),
    "Rprop": lambda p, **k: T.Rprop(p, lr=1e-3, **k),
    "Adafactor": lambda p, **k: T.Adafactor(p, lr=1e-2, eps=(1e-5, 1e-3), **k),
}
FUSED = ("SGD", "Adam", "AdamW", "amsgrad", "Adagrad")
"""Not SGD with momentum: in bfloat16 the CPU kernel of torch 2.13 does not keep the momentum_buffer it computed."""
WAYS = [(kind, {"foreach": each}) for kind in TORCH for each in (False, True)]
WAYS += [(kind, {"fused": True}) for kind in FUSED]


def _name(value: Any) -> str | None:
    return next(iter(value)) + str(next(iter(value.values()))) if isinstance(value, dict) else None


@pytest.mark.parametrize("hooks", [True, False], ids=["op by op", "as a whole"])
@pytest.mark.parametrize("dtype", LOW, ids=["bfloat16", "float16"])
@pytest.mark.parametrize(("kind", "way"), WAYS, ids=_name)
def test_numbers_of_an_optimizer_of_torch_are_those_of_its_float64_copy(
    kind: str, way: dict[str, bool], dtype: torch.dtype, hooks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ways of taking a step again; the second where no hook of the program's could act in between."""
    measured_as_a_whole = []
    original = flat_steps.FlatStep.measure

    def measure(*args: Any) -> None:
        measured_as_a_whole.append(True)
        original(*args)

    monkeypatch.setattr(flat_steps.FlatStep, "measure", measure)
    oracle, report = train(lambda p: TORCH[kind](p, **way), dtype, hooks=hooks)
    assert bool(measured_as_a_whole) is (not hooks and kind != "Adafactor")
    compare(oracle, report, dtype)


@pytest.mark.parametrize("dtype", LOW, ids=["bfloat16", "float16"])
def test_muon_loses_what_its_float64_copy_says_but_for_the_casts_it_makes_itself(dtype: torch.dtype) -> None:
    """Its Newton-Schulz iterations run in bfloat16 on purpose, in the copy too: what they lose the trace counts."""
    oracle, report = train(lambda p: torch.optim.Muon([q for q in p if q.ndim == 2], lr=1e-2), dtype)
    oracle.count()
    weights, state = (measured(report, role, dtype) for role in ("master_weight", "optimizer_state"))
    assert weights["updates_lost"] == pytest.approx(oracle.lost, rel=0.03)
    assert weights["applied_update_error"] > 0.95 * oracle.error
    assert state["state_frozen"] == pytest.approx(oracle.frozen, abs=2e-3)


THIRD = (
    "ADOPT", "AdaBelief", "AdamP", "Adan", "CAME", "DiffGrad", "LaProp", "LARS", "Lion", "QHAdam", "Ranger",
    "ScheduleFreeAdamW", "Tiger",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", THIRD)
def test_numbers_of_a_third_partys_optimizer_are_those_of_its_float64_copy(kind: str) -> None:
    """Those of pytorch-optimizer whose formula does not depend on the dtype."""
    made = getattr(pytest.importorskip("pytorch_optimizer"), kind)
    compare(*train(lambda p: made(p, lr=1e-3), torch.bfloat16), torch.bfloat16)


LOOPS = [
    pytest.param(loop, dtype, id=f"{loop}-{str(dtype).removeprefix('torch.')}")
    for loop in ("micro", "scaler", "clipped", "closure")
    for dtype in LOW
    if (loop, dtype) != ("scaler", torch.float16)  # a GradScaler refuses to unscale float16 gradients
]


INFINITE = [(kind, "clipped", torch.float16) for kind in ("centered", "Adafactor")]
"""Squares of gradients that were clipped so far are zero in float16. From such a state the exact step is NaN or inf,
of these two in float64 too: the report counts the parameters of which that is so, and gives no share."""


@pytest.mark.parametrize("hooks", [True, False], ids=["op by op", "as a whole"])
@pytest.mark.parametrize(("loop", "dtype"), LOOPS)
@pytest.mark.parametrize(
    ("kind", "way"),
    [pytest.param(*way, marks=[] if way[0] in ("SGD", "AdamW") else pytest.mark.slow) for way in WAYS],
    ids=_name,
)
def test_numbers_do_not_depend_on_how_the_loop_comes_by_its_gradients(
    kind: str, way: dict[str, bool], loop: str, dtype: torch.dtype, hooks: bool
) -> None:
    oracle, report = train(lambda p: TORCH[kind](p, **way), dtype, loop, hooks=hooks or loop == "closure")
    if (kind, loop, dtype) in INFINITE:
        assert measured(report, "master_weight", dtype)["infinite"] >= 4
    else:
        compare(oracle, report, dtype)


@pytest.mark.parametrize("hooks", [True, False], ids=["op by op", "as a whole"])
@pytest.mark.parametrize("way", [{"foreach": False}, {"foreach": True}, {"fused": True}], ids=_name)
def test_a_sample_says_what_all_elements_say_within_its_own_error(way: dict[str, bool], hooks: bool) -> None:
    """A sample of 1 % of the elements: at most three standard deviations of a share of so many, and never all."""
    samples._limits["few"] = 400
    try:
        oracle, report = train(lambda p: TORCH["AdamW"](p, **way), torch.bfloat16, width=300, values="few", hooks=hooks)
    finally:
        del samples._limits["few"]
    oracle.count()
    weights = measured(report, "master_weight", torch.bfloat16)
    assert weights["updates_lost"] == pytest.approx(oracle.lost, abs=3 * math.sqrt(0.25 / 1600))
    assert weights["applied_update_error"] == pytest.approx(oracle.error, rel=0.2)
    assert weights["updates_lost"] != oracle.lost


def test_steps_that_read_gradients_where_they_have_moved_to_give_no_number() -> None:
    """LBFGS asks its closure again and again on its way: what float32 would do there nobody has computed."""
    report = train(lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3), torch.bfloat16, "closure")[1]
    assert measured(report, "master_weight", torch.bfloat16) == {"unmeasured": 6}


class Lamb(torch.optim.Optimizer):
    """Hand-written: a trust ratio of norms over all of a parameter (https://arxiv.org/abs/1904.00962)."""

    def __init__(self, params: Any, lr: float = 1e-2) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                m = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                v = self.state[p].setdefault("exp_avg_sq", torch.zeros_like(p))
                m.mul_(0.9).add_(p.grad, alpha=0.1)
                v.mul_(0.99).addcmul_(p.grad, p.grad, value=0.01)
                update = m / v.sqrt().add_(1e-3)
                p.add_(update * (p.norm() / update.norm().clamp(min=1e-6)), alpha=-group["lr"])


def test_norms_over_a_long_parameter_are_those_of_its_sample_for_so_many_more() -> None:
    samples._limits["few"] = 4000
    try:
        oracle, report = train(Lamb, torch.bfloat16, width=300, values="few")
    finally:
        del samples._limits["few"]
    oracle.count()
    weights = measured(report, "master_weight", torch.bfloat16)
    assert "beyond_sample" not in weights
    assert weights["updates_lost"] == pytest.approx(oracle.lost, abs=3 * math.sqrt(0.25 / 16000))
    assert weights["applied_update_error"] == pytest.approx(oracle.error, rel=0.1)


def test_the_report_says_how_many_parameters_a_sample_gave_no_number() -> None:
    """Muon multiplies whole matrices: of the three, the longest two are more than the sample."""
    samples._limits["few"] = 4000
    try:
        report = train(
            lambda p: torch.optim.Muon([q for q in p if q.ndim == 2], lr=1e-2), torch.bfloat16, width=300, values="few"
        )[1]
    finally:
        del samples._limits["few"]
    weights = measured(report, "master_weight", torch.bfloat16)
    assert weights["beyond_sample"] == 2
    assert weights["updates_lost"] > 0


class Lion(torch.optim.Optimizer):
    """Hand-written, with temporaries: https://arxiv.org/abs/2302.06675."""

    def __init__(self, params: Any, lr: float = 1e-4) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                m = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                update = (m * 0.9 + p.grad * 0.1).sign_()
                p.mul_(1 - group["lr"] * 0.1)
                p.add_(update, alpha=-group["lr"])
                m.mul_(0.99).add_(p.grad, alpha=0.01)


class Rows(torch.optim.Optimizer):
    """Hand-written, with reductions, views and broadcasting: an Adafactor without its corrections, on `p.data`."""

    def __init__(self, params: Any, lr: float = 1e-3) -> None:
        super().__init__(params, {"lr": lr})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if not self.state[p]:
                    self.state[p]["exp_avg_sq"] = torch.zeros_like(p.data.view(len(p), -1)[:, :1])
                g = p.grad.data.view(len(p), -1)
                rows = self.state[p]["exp_avg_sq"]
                rows.lerp_(g.pow(2).mean(-1, keepdim=True), 0.1)
                update = g / rows.sqrt().add(1e-3)
                norm = update.norm() / update.numel() ** 0.5
                p.data.sub_((group["lr"] * update / norm.clamp(min=1.0)).view_as(p))


class Halves(torch.optim.Optimizer):
    """Hand-written: each half of a parameter has its own rate, and its weight decay comes by a Python number."""

    def __init__(self, params: Any, lr: float = 1e-2) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                half = len(p) // 2
                size = float(p.norm())
                p[:half].add_(p.grad[:half], alpha=-group["lr"])
                p[half:].addcmul_(p.grad[half:], p.grad[half:].sign(), value=-group["lr"] / (1 + size))


@pytest.mark.parametrize("dtype", LOW, ids=["bfloat16", "float16"])
@pytest.mark.parametrize("kind", [Lion, Rows, Halves])
def test_numbers_of_a_hand_written_optimizer_are_those_of_its_float64_copy(kind: Any, dtype: torch.dtype) -> None:
    compare(*train(kind, dtype), dtype)
