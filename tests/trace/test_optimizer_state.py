"""Where optimizers hide state, and what excuses low precision: seen in what they keep and do, never in a name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_oracle import loop, loss_of, reported, small, traced
from torch import nn

from precaudit.model.wire import Report


class Small(torch.optim.Optimizer):
    """SGD with momentum; what it keeps, where, and how it writes the weights is up to the subclasses."""

    def __init__(self, params: Any, lr: float = 1e-2) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.update(p, p.grad, group["lr"])

    def update(self, p: torch.Tensor, gradient: torch.Tensor, lr: float) -> None:
        raise NotImplementedError


class InLists(Small):
    """Moments in a list inside a dict under a string key, filed under no parameter."""

    def update(self, p: torch.Tensor, gradient: torch.Tensor, lr: float) -> None:
        kept = self.state["everything"].setdefault("history", [])
        kept.append(gradient.clone())
        del kept[:-4]
        p.sub_(gradient, alpha=lr)


class InObjects(Small):
    """Moments as attributes of an object."""

    class Projector:
        def __init__(self, like: torch.Tensor) -> None:
            self.basis = [torch.zeros_like(like)]

    def update(self, p: torch.Tensor, gradient: torch.Tensor, lr: float) -> None:
        projector = self.state[p].setdefault("projector", InObjects.Projector(p))
        projector.basis[0].lerp_(gradient, 0.1)
        p.sub_(projector.basis[0], alpha=lr)


class InAttributes(Small):
    """Moments in an attribute of the optimizer, filed under the parameters; beside a buffer that is no state."""

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.moments: dict[Any, torch.Tensor] = {}
        self.table = torch.linspace(0, 1, 7).bfloat16()

    def update(self, p: torch.Tensor, gradient: torch.Tensor, lr: float) -> None:
        moment = self.moments.setdefault(p, torch.zeros_like(p))
        moment.mul_(0.9).add_(gradient)
        p.sub_(moment, alpha=lr)


class Around(Small):
    """An optimizer around another one."""

    def __init__(self, params: Any) -> None:
        params = list(params)
        super().__init__(params)
        self.optimizer = torch.optim.SGD(params, lr=1e-2, momentum=0.9)

    def step(self, closure: Any = None) -> None:
        self.optimizer.step()


@pytest.mark.parametrize(("kind", "tensors"), [(InLists, 4), (InObjects, 4), (InAttributes, 4), (Around, 4)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_state_is_found_outside_of_the_usual_dict(kind: Any, tensors: int, dtype: str) -> None:
    model = small(getattr(torch, dtype))
    report = traced(lambda: loop(model, kind(model.parameters())))
    assert reported(report, "optimizer_state") == {dtype: tensors}
    assert reported(report, "master_weight") == {dtype: 4}
    assert report.coverage.traced_steps == [2, 3]


@torch.library.custom_op("precaudit_tests::fused_step", mutates_args=("p", "kept"))
def fused_step(p: torch.Tensor, gradient: torch.Tensor, kept: torch.Tensor, master: bool) -> None:
    """A kernel such as those of bitsandbytes: its name does not end in _ and nothing tells how it writes."""
    if master:
        p.copy_(kept.sub_(gradient, alpha=1e-2))
    else:
        p.sub_(kept.lerp_(gradient.float(), 0.1).to(p.dtype), alpha=1e-2)


class InKernel(Small):
    """float32 momentum, and parameters written in place."""

    master = False

    def update(self, p: torch.Tensor, gradient: torch.Tensor, lr: float) -> None:
        if p not in self.state:
            self.state[p]["kept"] = p.detach().float().clone() if self.master else torch.zeros_like(p).float()
        fused_step(p, gradient, self.state[p]["kept"], self.master)


class InKernelWithMaster(InKernel):
    """What is kept is the weight itself, and the parameter its rounding."""

    master = True


@pytest.mark.parametrize(
    ("kind", "rules", "weights"), [(InKernel, {"PA101"}, "bfloat16"), (InKernelWithMaster, set(), "float32")]
)
def test_parameters_that_a_librarys_kernel_updates_have_a_master_or_none(
    kind: Any, rules: set[str], weights: str
) -> None:
    model = small(torch.bfloat16)
    report = traced(lambda: loop(model, kind(model.parameters())))
    assert {f.rule for f in report.findings} & {"PA101", "PA301"} == rules
    assert reported(report, "master_weight") == {weights: 4}


def verdicts(report: Report, role: str) -> dict[str, tuple[str, list[str]]]:
    return {row.dtype: (row.verdict, row.because) for row in report.roles if row.role == role and row.dtype}


class Kahan(Small):
    """What rounding takes from an update is added to the next one."""

    def update(self, p: torch.Tensor, gradient: torch.Tensor, lr: float) -> None:
        carried = self.state[p].setdefault("carried", torch.zeros_like(p))
        carried.sub_(gradient, alpha=lr)
        before = p.detach().clone()
        p.add_(carried)
        carried.add_(before.sub_(p))


class KahanForeach(torch.optim.Optimizer):
    """The same over lists, with the gradients' own memory as scratch."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        params = self.param_groups[0]["params"]
        gradients = [p.grad for p in params]
        carried = [self.state[p].setdefault("carried", torch.zeros_like(p)) for p in params]
        torch._foreach_sub_(carried, gradients, alpha=1e-2)
        torch._foreach_copy_(gradients, params)
        torch._foreach_add_(params, carried)
        torch._foreach_sub_(gradients, params)
        torch._foreach_add_(carried, gradients)


class Differences(Small):
    """How far the weights moved since the last step: computed like a lost part, and never given back."""

    def update(self, p: torch.Tensor, gradient: torch.Tensor, lr: float) -> None:
        moved = self.state[p].setdefault("moved", torch.zeros_like(p))
        before = p.detach().clone()
        p.sub_(gradient, alpha=lr)
        moved.add_(before.sub_(p))


@pytest.mark.parametrize("kind", [Kahan, KahanForeach])
def test_kahan_summation_is_recognised_by_what_it_carries(kind: Any) -> None:
    model = small(torch.bfloat16)
    report = traced(lambda: loop(model, kind(model.parameters())))
    assert verdicts(report, "master_weight") == {"bfloat16": ("allowed", ["kahan"])}
    assert verdicts(report, "optimizer_state") == {"bfloat16": ("allowed", ["kahan"])}
    assert report.findings == []


def test_a_difference_that_is_never_given_back_is_no_kahan_summation() -> None:
    model = small(torch.bfloat16)
    report = traced(lambda: loop(model, Differences(model.parameters())))
    assert {"PA101", "PA301"} <= {finding.rule for finding in report.findings}


class Rounding(Small):
    """Updates in float32, written back by one of several ways of rounding."""

    way: Callable[[torch.Tensor], torch.Tensor]

    def update(self, p: torch.Tensor, gradient: torch.Tensor, lr: float) -> None:
        p.copy_(type(self).way(p.float() - lr * gradient.float()))


def add_bits_and_cut(exact: torch.Tensor) -> torch.Tensor:
    bits = torch.randint_like(exact, 0, 1 << 16, dtype=torch.int32)
    return bits.add_(exact.view(torch.int32)).bitwise_and_(-65536).view(torch.float32)


def choose_a_neighbour(exact: torch.Tensor) -> torch.Tensor:
    bits = exact.view(torch.int32)
    below = bits & -65536
    up = torch.randint(0, 1 << 16, exact.shape, dtype=torch.int32) < (bits & 0xFFFF)
    return torch.where(up, below + 65536, below).view(torch.float32).bfloat16()


def nearest(exact: torch.Tensor) -> torch.Tensor:
    return exact


def noisy(exact: torch.Tensor) -> torch.Tensor:
    return exact + 1e-4 * torch.randn_like(exact)


@pytest.mark.parametrize("way", [add_bits_and_cut, choose_a_neighbour])
def test_stochastic_rounding_is_recognised_by_the_bits_it_draws(way: Any) -> None:
    model = small(torch.bfloat16)
    kind = type("Stochastic", (Rounding,), {"way": staticmethod(way)})
    report = traced(lambda: loop(model, kind(model.parameters())))
    assert verdicts(report, "master_weight") == {"bfloat16": ("allowed", ["stochastic-rounding"])}
    assert report.findings == []


@pytest.mark.parametrize("way", [nearest, noisy])
def test_weights_rounded_to_the_nearest_have_no_master_however_exact_the_update(way: Any) -> None:
    model = small(torch.bfloat16)
    kind = type("Nearest", (Rounding,), {"way": staticmethod(way)})
    report = traced(lambda: loop(model, kind(model.parameters())))
    assert verdicts(report, "master_weight") == {"bfloat16": ("violation", [])}
    assert "PA101" in {finding.rule for finding in report.findings}


class Codes(torch.Tensor):
    """A wrapper that looks like a tensor of weights and holds 8-bit codes with one scale per block."""

    @staticmethod
    def __new__(cls, codes: torch.Tensor, scale: torch.Tensor, looks: torch.dtype) -> Any:
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=looks)

    def __init__(self, codes: torch.Tensor, scale: torch.Tensor, looks: torch.dtype) -> None:
        self.codes, self.scale = codes, scale

    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        return ["codes", "scale"], None

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError(func)


def pack(value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scale = value.abs().amax().clamp(min=1e-12).reshape(1) / 127
    return (value / scale).round().to(torch.int8), scale


class Packed(Small):
    """Momentum in 8-bit codes and a scale."""

    def update(self, p: torch.Tensor, gradient: torch.Tensor, lr: float) -> None:
        state = self.state[p]
        codes, scale = self.load(state) if state else pack(torch.zeros_like(p))
        momentum = (codes.float() * scale).mul_(0.9).add_(gradient)
        self.store(state, *pack(momentum))
        p.sub_(momentum, alpha=lr)

    def load(self, state: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return state["codes"], state["scale"]

    def store(self, state: Any, codes: torch.Tensor, scale: torch.Tensor) -> None:
        state["codes"], state["scale"] = codes, scale.half() if self.half else scale

    half = False


class PackedHalf(Packed):
    half = True


class Wrapped(Packed):
    def load(self, state: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return state["momentum"].codes, state["momentum"].scale

    def store(self, state: Any, codes: torch.Tensor, scale: torch.Tensor) -> None:
        state["momentum"] = Codes(codes, scale, torch.bfloat16)


@pytest.mark.parametrize("kind", [Packed, PackedHalf, Wrapped])
def test_block_wise_state_is_allowed_whatever_its_wrapper_looks_like(kind: Any) -> None:
    torch.manual_seed(0)
    model = nn.Linear(16, 16, bias=False)

    def train() -> None:
        optimizer = kind(model.parameters())
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.randn(8, 16)).square().mean().backward()
            optimizer.step()

    report = traced(train)
    assert verdicts(report, "optimizer_state") == {"int8": ("allowed", ["block-wise"])}
    assert report.findings == []


def test_an_optimizer_without_a_step_is_seen_by_what_it_does_in_backward() -> None:
    model = small(torch.bfloat16)

    def train() -> None:
        Small(model.parameters())  # it is known, and its step is never called
        for p in model.parameters():
            p.register_post_accumulate_grad_hook(update_now)
        for _ in range(6):
            loss_of(model, torch.randn(16, 6)).backward()

    def update_now(p: torch.Tensor) -> None:
        with torch.no_grad():
            p.add_(p.grad, alpha=-1e-3)
        p.grad = None

    report = traced(train)
    assert report.coverage.steps == 2
    assert reported(report, "master_weight") == {"bfloat16": 4}
    assert "PA101" in {finding.rule for finding in report.findings}


def without_an_optimizer(model: nn.Module, step: Callable[[], None]) -> Callable[[], None]:
    """A loop whose weights are updated by a function of its own."""

    def train() -> None:
        for _ in range(5):
            loss_of(model, torch.randn(16, 6)).backward()
            with torch.no_grad():
                step()
            for p in model.parameters():
                p.grad = None

    return train


def test_kahan_summation_without_an_optimizer_is_no_finding() -> None:
    model = small().to(torch.bfloat16)
    velocity = {p: torch.zeros_like(p, dtype=torch.float32) for p in model.parameters()}
    lost = {p: torch.zeros_like(p) for p in model.parameters()}

    def step() -> None:
        for p in model.parameters():
            velocity[p].mul_(0.9).add_(p.grad.float())
            lost[p].add_(velocity[p].to(p.dtype), alpha=-0.01)
            before = p.detach().clone()
            p.add_(lost[p])
            lost[p].add_(before.sub_(p))

    report = traced(without_an_optimizer(model, step))
    assert not {f.rule for f in report.findings} & {"PA101", "PA103", "PA301", "PA304"}


def test_moments_rounded_back_and_filed_by_name_are_optimizer_state() -> None:
    model = small()
    moments = {n: torch.zeros_like(p, dtype=torch.bfloat16) for n, p in model.named_parameters()}

    def step() -> None:
        for name, p in model.named_parameters():
            p.sub_(1e-3 * (0.9 * moments[name] + 0.1 * p.grad).sign())
            moments[name] = (0.99 * moments[name] + 0.01 * p.grad).to(torch.bfloat16)

    assert [f.rule for f in traced(without_an_optimizer(model, step)).findings] == ["PA301"]


def test_rounded_gradients_with_a_float32_error_that_is_carried_on_are_no_state() -> None:
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    error = {p: torch.zeros_like(p) for p in model.parameters()}

    def step() -> None:
        for p in model.parameters():
            wanted = p.grad + error[p]
            p.grad = wanted.to(torch.bfloat16).float()
            error[p] = wanted - p.grad
        optimizer.step()

    assert not traced(without_an_optimizer(model, step)).findings
