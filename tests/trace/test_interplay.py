"""What users put around autograd runs bit for bit as without the trace, and its roles equal inspection."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import harness
import pytest
import torch
from test_oracle import dtypes, inspected_state, loss_of, reported, small, traced
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from precaudit.runtime.modes import Modes


@torch.library.custom_op("precaudit_tests::squash", mutates_args=())
def squash(x: torch.Tensor, by: float) -> torch.Tensor:
    return torch.tanh(x * by)


def _keep(ctx: Any, inputs: Any, output: torch.Tensor) -> None:
    ctx.save_for_backward(output)
    ctx.by = inputs[1]


def _squash_backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
    (out,) = ctx.saved_tensors
    return gradient * (1 - out * out) * ctx.by, None


squash.register_autograd(_squash_backward, setup_context=_keep)


@torch.library.custom_op("precaudit_tests::gram", mutates_args=())
def gram(x: torch.Tensor) -> torch.Tensor:
    return x @ x.T


gram.register_autograd(
    lambda ctx, gradient: (gradient + gradient.T).to(ctx.x.dtype) @ ctx.x,
    setup_context=lambda ctx, inputs, output: setattr(ctx, "x", inputs[0]),
)

LIBRARY = torch.library.Library("precaudit_tests", "FRAGMENT")
LIBRARY.define("plain_gram(Tensor x) -> Tensor")
LIBRARY.impl("plain_gram", lambda x: x @ x.T, "CPU")


class Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


class Doubling(TorchFunctionMode):
    """Changes what it sees: a call more or less of it would change the numbers."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        return out * 2 if func is torch.tanh else out


Step = Callable[[nn.Module, torch.Tensor], torch.Tensor]
SEEN: list[str] = []


def custom_op(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return squash(model(x), 0.5).float().square().mean()


def custom_op_under_autocast(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Its kernel is code like any other: autocast casts what it multiplies."""
    with torch.autocast("cpu", torch.bfloat16):
        return gram(model(x).float()).float().square().mean()


def op_of_a_library_without_autograd(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Nothing says how to differentiate it, so autograd follows what its kernel calls."""
    return torch.ops.precaudit_tests.plain_gram(model(x)).float().square().mean() + loss_of(model, x)


def under_a_dispatch_mode(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with Counting() as mode:
        loss = loss_of(model, x)
        loss.backward(retain_graph=True)
    SEEN.extend(mode.seen)
    model.zero_grad()
    return loss


def under_nested_modes(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with Counting() as outer, Doubling(), Counting() as inner:
        loss = torch.tanh(model(x)).float().square().mean()
    SEEN.extend(outer.seen + inner.seen)
    return loss


def with_hooks(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    out = model(x)
    out.register_hook(lambda gradient: gradient * 1.5)
    handle = model[0].register_forward_hook(lambda module, args, result: result + 0.25)  # type: ignore[operator]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
        loss = (out + model(x)).float().square().mean()
    handle.remove()
    return loss


def checkpointed(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return checkpoint(model, x, use_reentrant=False).float().square().mean()


def checkpointed_reentrant(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return checkpoint(model, x.requires_grad_(), use_reentrant=True).float().square().mean()


def functional_gradient(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    names = [name for name, _ in model.named_parameters()]

    def loss_of_weights(*weights: torch.Tensor) -> torch.Tensor:
        out = torch.func.functional_call(model, dict(zip(names, weights, strict=True)), (x,))
        return out.float().square().mean()

    weights = tuple(model.parameters())
    slopes = torch.func.grad(loss_of_weights, argnums=tuple(range(len(weights))))(*weights)
    return loss_of(model, x) + sum(slope.float().square().sum() for slope in slopes).detach()  # type: ignore[union-attr]


def vectorised(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return torch.vmap(lambda row: model(row).float().square().sum())(x).mean()


def in_a_thread(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    losses: list[torch.Tensor] = []
    thread = threading.Thread(target=lambda: losses.append(loss_of(model, x)))
    thread.start()
    thread.join()
    return losses[0]


PROGRAMS: list[Step] = [
    custom_op,
    custom_op_under_autocast,
    op_of_a_library_without_autograd,
    under_a_dispatch_mode,
    under_nested_modes,
    with_hooks,
    checkpointed,
    checkpointed_reentrant,
    functional_gradient,
    vectorised,
    in_a_thread,
]


@contextmanager
def nothing() -> Iterator[None]:
    yield


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
@pytest.mark.parametrize(
    "around", [nothing, Counting, Doubling], ids=["plain", "in a dispatch mode", "in a function mode"]
)
def test_runs_bit_for_bit_and_its_roles_equal_inspection(program: Step, dtype: str, around: Any) -> None:
    made: list[Any] = []

    def train() -> None:
        SEEN.clear()
        model = small(getattr(torch, dtype))
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
        losses = []
        with ExitStack() as stack:
            stack.enter_context(around())
            for _ in range(5):
                loss = program(model, torch.randn(16, 6).to(getattr(torch, dtype)))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        bits = [p.detach().view(torch.uint8).numpy().tobytes() for p in model.parameters()]
        made.append((losses, bits, list(SEEN), optimizer, torch.random.get_rng_state().tolist()))

    torch.set_num_threads(1)
    train()
    report = traced(train)
    plain, under = made
    assert under[:3] == plain[:3]
    assert under[4] == plain[4]
    assert [note for note in report.coverage.notes if "could not follow" in note] == []
    assert report.coverage.traced_steps == [2, 3]
    assert reported(report, "optimizer_state") == inspected_state(under[3]) == {dtype: 4}
    assert reported(report, "master_weight") == {dtype: 4}
    inputs = program is checkpointed_reentrant  # its inputs are leaves with a gradient of their own
    assert reported(report, "gradient") == {dtype: 4 + inputs}
    assert dtypes(report, "loss") == {"float32"}


def padded(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    nested = torch.nested.nested_tensor([x[:3], x[3:8]])
    return torch.nested.to_padded_tensor(model[0](nested), 0.0).square().mean()  # type: ignore[operator]


def jagged(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    nested = torch.nested.nested_tensor([x[:3], x[3:8]], layout=torch.jagged)
    return model(nested).values().square().mean()


def sparse(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    graph = torch.eye(16).to_sparse()
    return torch.sparse.mm(graph, model(x)).square().mean()


def compressed(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return (torch.eye(16).to_sparse_csr() @ model(x)).square().mean()


def quantized(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        target = torch.quantize_per_tensor(x, 0.1, 0, torch.qint8).flatten(1).dequantize()
    return (model(x) - target[:, :2]).square().mean()


def mkldnn(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        target = x.to_mkldnn().reshape(16, 6).to_dense()
    return (model(x) - target[:, :2]).square().mean()


@pytest.mark.parametrize("inference", [False, True], ids=["", "and in inference mode"])
@pytest.mark.parametrize("program", [padded, jagged, sparse, compressed, quantized, mkldnn])
def test_tensors_that_lie_in_memory_in_another_way(program: Step, inference: bool) -> None:
    """Ops that are made of others elsewhere are one kernel for these."""
    made: list[Any] = []

    def train() -> None:
        model = small()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
        losses = []
        for _ in range(5):
            x = torch.randn(16, 6)
            if inference:
                with torch.inference_mode():
                    losses.append(program(model, x).item())
            loss = program(model, x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        made.append((losses, [p.detach().view(torch.uint8).numpy().tobytes() for p in model.parameters()]))

    torch.set_num_threads(1)
    train()
    report = traced(train)
    assert made[1] == made[0]
    assert report.coverage.notes == []


def test_low_sums_of_torch_func_gradients_are_gradient_accumulation() -> None:
    net = small()

    def of_task(params: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return torch.vmap(lambda one: torch.func.functional_call(net, params, (one,)).square().mean())(x).mean()

    def train() -> None:
        params = {name: nn.Parameter(p.detach().clone()) for name, p in net.named_parameters()}
        optimizer = torch.optim.SGD(params.values(), lr=0.01)
        for _ in range(5):
            now = {name: p.detach() for name, p in params.items()}
            total = {name: torch.zeros_like(p, dtype=torch.bfloat16) for name, p in now.items()}
            for _ in range(3):
                for name, gradient in torch.func.grad(of_task)(now, torch.randn(16, 6)).items():
                    total[name] = total[name] + gradient.to(torch.bfloat16)
            for name, p in params.items():
                p.grad = total[name].float() / 3
            optimizer.step()

    assert [finding.rule for finding in traced(train).findings] == ["PA208"]


def test_a_wrapper_class_hears_of_its_programs_ops_and_of_none_of_ours() -> None:
    heard: list[str] = []

    class Wrapper(torch.Tensor):
        inner: torch.Tensor

        @staticmethod
        def __new__(cls, inner: torch.Tensor) -> Wrapper:
            made = torch.Tensor._make_wrapper_subclass(
                cls, inner.size(), dtype=inner.dtype, requires_grad=inner.requires_grad
            )
            made.inner = inner
            return made

        @classmethod
        def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            heard.append(str(func))
            plain = [a.inner if isinstance(a, Wrapper) else a for a in args]
            out = func(*plain, **(kwargs or {}))
            if func._schema.name.endswith("_"):
                return args[0]
            return Wrapper(out) if isinstance(out, torch.Tensor) else out

    def run() -> list[str]:
        heard.clear()
        torch.manual_seed(0)
        parameter = nn.Parameter(Wrapper(torch.randn(4, 4)))
        optimizer = torch.optim.SGD([parameter], 1e-2)
        for _ in range(4):
            (parameter * parameter).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return list(heard)

    plain, watched = run(), []
    traced(lambda: watched.extend(run()), keep_going=True)
    assert watched == plain


def test_after_the_window_no_reference_of_ours_is_left_on_the_programs_objects() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
    optimizer = torch.optim.Adam(model.parameters())
    objects = [model, *model.modules(), *model.parameters(), optimizer]
    before = [weakref.getweakrefcount(one) for one in objects]

    def train() -> None:
        for _ in range(4):
            model(torch.randn(2, 4)).sum().backward()
            optimizer.step()

    traced(train, keep_going=True)
    assert [weakref.getweakrefcount(one) for one in objects] == before


def test_an_optimizer_that_the_program_drops_after_the_window_is_gone() -> None:
    gone = []

    def train() -> None:
        model = nn.Linear(4, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            model(torch.randn(2, 4)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        watched = weakref.ref(optimizer)
        del optimizer
        gone.append(watched() is None)

    harness.trace_call(train)
    assert gone == [True]


@pytest.mark.parametrize("collects", [True, False])
def test_our_own_arithmetic_makes_no_collection_of_cycles(collects: bool) -> None:
    """And leaves the collector as the program has it."""
    (gc.enable if collects else gc.disable)()
    try:
        with Modes().aside():
            assert not gc.isenabled()
        assert gc.isenabled() == collects
    finally:
        gc.enable()
