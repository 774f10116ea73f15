"""Adapters: found by class or by import, asked for names, claims and declared dtypes, and harmless when they break."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import harness
import pytest
import torch
import torch.distributed as dist
from torch import nn

from precaudit.model.vocabulary import Kind, Role, Site
from precaudit.runtime import session as sessions
from precaudit.runtime.frameworks import Framework
from precaudit.runtime.frameworks.account import Frameworks
from precaudit.runtime.frameworks.sharding import pattern
from precaudit.runtime.imports import when_imported
from precaudit.runtime.process.ledger import Observation
from precaudit.runtime.trackers.claims import Declaration, relation
from precaudit.runtime.trackers.modules import Modules
from precaudit.runtime.watchers.declared import Declared


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A process group of one."""
    with harness.unchanged_world():
        dist.init_process_group("gloo", init_method=(tmp_path / "store").as_uri(), rank=0, world_size=1)
        yield


@pytest.fixture
def session() -> Iterator[sessions.Session]:
    begun = sessions.start({**harness.SETTINGS, "cwd": "."})
    yield begun
    begun.remove()


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


NAMES = [f"{module}.{part}" for module in ("body.0", "body.2", "head") for part in ("weight", "bias")]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    for _ in range(steps):
        model(torch.randn(4, 8)).float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


# -- names


def named(session: sessions.Session, model: nn.Module) -> list[str]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train(model, optimizer, steps=2)  # once its window is over, the trace forgets the modules
    return [session.parts.get(Modules).name(p) for group in optimizer.param_groups for p in group["params"]]


def test_ddp_parameters_keep_the_names_of_the_users_module(group: None, session: sessions.Session) -> None:
    assert named(session, torch.nn.parallel.DistributedDataParallel(Model())) == NAMES


def test_fsdp2_parameters_keep_the_names_of_the_users_module(group: None, session: sessions.Session) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = Model()
    mesh = init_device_mesh("cpu", (1,))
    fully_shard(model.body, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert sorted(named(session, model)) == sorted(NAMES)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("original", [True, False])
def test_fsdp1_parameters_have_fqns_and_flat_ones_a_pattern(
    group: None, session: sessions.Session, original: bool
) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = Model()
    cpu = {"device_id": torch.device("cpu"), "use_orig_params": original}
    model.body = FullyShardedDataParallel(model.body, **cpu)  # type: ignore[assignment]
    names = named(session, FullyShardedDataParallel(model, **cpu))
    assert sorted(names) == (sorted(NAMES) if original else ["body.*", "head.*"])


def test_one_pattern_stands_for_the_parameters_of_a_unit() -> None:
    assert pattern(["head.weight"]) == "head.weight"
    assert pattern(["blocks.0.up.weight", "blocks.0.up.bias"]) == "blocks.0.up.*"
    assert pattern(["embed.weight", "head.weight"]) == "*"


# -- declared and actual


class Says(Framework):
    title = "Says"
    declared: list[Declaration] = []

    def declares(self) -> Iterator[Declaration]:
        yield from self.declared


def dishonoured(session: sessions.Session, declared: list[Declaration], *actual: str) -> list[tuple[str, Any, Any]]:
    says = Says()
    says.declared = declared
    session.parts.get(Frameworks).met.append(says)
    seen = [Observation(Kind.HOLDS, dtype, Role.GRADIENT_REDUCTION) for dtype in actual]
    session.parts.get(Declared).complete(seen)
    return [(f.dtype, f.attrs["actual"], f.attrs["relation"]) for f in seen[len(actual) :]]


def reduce(dtype: str, chosen: str = "explicit") -> Declaration:
    return Declaration(Role.GRADIENT_REDUCTION, dtype, "reduce_dtype", Site("train.py", 3), chosen)


def test_one_lower_dtype_among_many_is_against_the_declaration(session: sessions.Session) -> None:
    assert dishonoured(session, [reduce("float32")], "float32", "bfloat16") == [("float32", "bfloat16", "lower")]


def test_what_another_unit_declares_is_not_against_this_one(session: sessions.Session) -> None:
    both = [reduce("float32"), reduce("bfloat16")]
    assert dishonoured(session, both, "float32", "bfloat16") == []


def test_a_dtype_that_nobody_chose_is_no_declaration(session: sessions.Session) -> None:
    assert dishonoured(session, [reduce("float32", "default")], "bfloat16") == []


def test_autocast_for_another_device_is_a_note_not_an_error() -> None:
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def loop() -> None:
        for _ in range(4):
            with torch.autocast("cpu", dtype=torch.float16):
                pass
            train(model, optimizer)

    report = harness.trace_call(loop)
    (told,) = {(f.severity.value, f.rule) for f in report.findings if f.rule == "PA504"}
    assert told == ("note", "PA504")


@pytest.mark.parametrize(
    ("declared", "actual", "expected"),
    [
        ("float32", ["float32"], None),
        ("float32", [], None),
        ("float32", ["float32", "float16"], ("lower", "float16")),
        ("bfloat16", ["float32"], ("higher", "float32")),
        ("float16", ["bfloat16"], ("substitute", "bfloat16")),
        ("bfloat16", ["bfloat16", "float32"], None),
        ("", ["bfloat16"], None),
    ],
)
def test_relation_of_what_ran_to_what_was_declared(declared: str, actual: list[str], expected: Any) -> None:
    assert relation(declared, actual) == expected


# -- imports


def module_file(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / f"{name}.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(str(folder))


def test_a_module_is_answered_once_after_it_has_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module_file(tmp_path, "awaited_once", monkeypatch)
    seen: list[int] = []
    undo = when_imported({"awaited_once": lambda: seen.append(sys.modules["awaited_once"].value)})
    try:
        module = importlib.import_module("awaited_once")
        importlib.reload(module)
        assert seen == [1]
        assert "exec_module" not in vars(module.__loader__)
    finally:
        undo()


def test_a_module_that_is_there_already_is_answered_at_once() -> None:
    seen: list[int] = []
    when_imported({"json": lambda: seen.append(1)})()
    assert seen == [1]


def test_an_import_that_fails_fails_as_it_would_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "awaited_broken.py").write_text("raise ValueError('its own')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    seen: list[int] = []
    undo = when_imported({"awaited_broken": lambda: seen.append(1), "awaited_missing": lambda: seen.append(2)})
    try:
        with pytest.raises(ValueError, match="its own"):
            importlib.import_module("awaited_broken")
        with pytest.raises(ModuleNotFoundError, match="awaited_missing"):
            importlib.import_module("awaited_missing")
        assert seen == []
    finally:
        undo()


# -- an adapter that breaks


def breaks(*_: Any) -> Any:
    raise RuntimeError("renamed in the next release")


@pytest.mark.parametrize("question", ["claims", "declares", "accumulates", "observes", "parameter_name", "scales_loss"])
def test_an_adapter_that_breaks_is_a_note_and_training_goes_on(
    session: sessions.Session, question: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Says, question, breaks, raising=False)
    session.parts.get(Frameworks).met.append(Says())
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        model(torch.randn(4, 8)).square().mean().backward()
        model(torch.randn(4, 8)).square().mean().backward()
        optimizer.step()
    for group in optimizer.param_groups:
        session.parts.get(Modules).name(group["params"][0])
    session.parts.get(Frameworks).scales_loss()
    notes = session.rank_file.content()["coverage"]["notes"]
    told = "RuntimeError: renamed in the next release"
    assert (
        f"precaudit could not follow Says: {question}, and judged nothing that rests on it; please report this: {told}"
    ) in notes


def test_patches_of_the_frameworks_are_taken_out(group: None) -> None:
    from torch.distributed.fsdp._fully_shard._fsdp_state import FSDPState
    from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

    watched: dict[str, Callable[[], Any]] = {
        "init": lambda: FSDPState.init,
        "hook": lambda: torch.nn.parallel.DistributedDataParallel.register_comm_hook,
        "scale": lambda: ShardedGradScaler.scale,
        "unscale_": lambda: ShardedGradScaler.unscale_,
    }
    before = {name: get() for name, get in watched.items()}

    def loop() -> None:
        wrapped = torch.nn.parallel.DistributedDataParallel(Model())
        ShardedGradScaler(device="cpu")
        assert not [name for name, get in watched.items() if get() is before[name]]
        train(wrapped, torch.optim.SGD(wrapped.parameters(), lr=0.1))

    harness.trace_call(loop)
    assert {name: get() for name, get in watched.items()} == before
