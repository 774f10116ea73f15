"""After every test nothing of the trace is left in this process; under CI=true a skipped test is a failure."""

from __future__ import annotations

import importlib
import os
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

WATCHED = (
    ("torch.autograd", "_engine_run_backward"),
    ("torch.autograd.graph", "_engine_run_backward"),
    ("torch.nn", "Module.to"),
    ("torch.nn", "Module._apply"),
    ("torch.nn", "Module.__call__"),
    ("torch.nn", "Module.__setattr__"),
    ("torch.nn", "Module.load_state_dict"),
    ("torch.optim", "Optimizer.__init__"),
    ("torch.optim.lr_scheduler", "ReduceLROnPlateau.step"),
    ("torch.optim", "Optimizer.load_state_dict"),
    ("torch.optim", "Optimizer.profile_hook_step"),
    ("torch.optim", "Optimizer.zero_grad"),
    ("torch.amp", "GradScaler.__init__"),
    ("torch.amp", "GradScaler.scale"),
    ("torch.amp", "GradScaler.unscale_"),
    ("torch.amp", "GradScaler.step"),
    ("torch.amp", "GradScaler.update"),
    ("torch.amp", "GradScaler.get_scale"),
    ("torch.amp", "autocast.__enter__"),
    ("torch.amp", "autocast.__exit__"),
    ("torch", "Tensor.backward"),
    ("torch", "autograd.backward"),
    ("torch", "autograd.grad"),
    ("torch", "save"),
    ("torch", "load"),
    ("torch", "set_default_dtype"),
    ("torch.nn.utils", "clip_grad_norm_"),
    ("torch.nn.utils", "clip_grad_value_"),
    ("torch.distributed", "all_reduce"),
    ("torch.distributed", "init_process_group"),
    ("torch.distributed.distributed_c10d", "init_process_group"),
    ("torch.distributed.device_mesh", "init_process_group"),
    ("threading", "Thread.run"),
    ("threading", "Thread.start"),
    ("sys", "excepthook"),
)
"""Every name the trace patches, or might."""

GLOBAL_HOOKS = (
    ("torch.nn.modules.module", "_global_forward_hooks"),
    ("torch.nn.modules.module", "_global_forward_pre_hooks"),
    ("torch.nn.modules.module", "_global_backward_hooks"),
    ("torch.nn.modules.module", "_global_backward_pre_hooks"),
    ("torch.nn.modules.module", "_global_parameter_registration_hooks"),
    ("torch.nn.modules.module", "_global_buffer_registration_hooks"),
    ("torch.nn.modules.module", "_global_module_registration_hooks"),
    ("torch.optim.optimizer", "_global_optimizer_pre_hooks"),
    ("torch.optim.optimizer", "_global_optimizer_post_hooks"),
)


def residue() -> dict[str, Any]:
    """What the trace could leave behind, by name: the object itself for patched names, the keys for hook tables."""
    import torch
    from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

    found: dict[str, Any] = {}
    for module, dotted in WATCHED:
        owner: Any = importlib.import_module(module)
        *front, last = dotted.split(".")
        for name in front:
            owner = getattr(owner, name)
        value = vars(owner).get(last) if isinstance(owner, type) else getattr(owner, last, None)
        found[f"{module}.{dotted}"] = [id(v) for v in value] if isinstance(value, list) else value
    for module, table in GLOBAL_HOOKS:
        found[f"{module}.{table}"] = list(getattr(importlib.import_module(module), table))
    found["dispatch modes"] = [type(mode).__name__ for mode in _get_current_dispatch_mode_stack()]
    found["function modes"] = torch._C._len_torch_function_stack()
    found["saved-tensor hooks"] = torch._C._autograd._saved_tensors_hooks_is_enabled()
    found["saved-tensor hook on top"] = torch._C._autograd._top_saved_tensors_default_hooks(False)
    # Frameworks that a test imports add finders of their own.
    finders = [str(getattr(finder, "__module__", "")) for finder in sys.meta_path]
    found["import finders"] = [name for name in finders if name.partition(".")[0] in ("precaudit", "sitecustomize")]
    found["profile function"] = sys.getprofile()
    found["threads"] = sum(t.name.startswith("precaudit") for t in threading.enumerate())
    return found


@pytest.fixture(scope="session")
def untouched() -> dict[str, Any]:
    """The state of torch before the first test."""
    return residue()


WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
"""Which of the processes that run the tests side by side this is."""

# torchrun always takes port 29500, so that two of them side by side meet; each worker's has one of its own.
os.environ["PET_MASTER_PORT"] = str(29500 + WORKER)


@pytest.fixture
def free_port() -> int:
    """A port of this worker's own, below those that the system gives to any socket that is opened meanwhile."""
    for port in range(20_000 + 1_000 * WORKER, 21_000 + 1_000 * WORKER):
        with socket.socket() as one:
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")


def let_compiled_steps_go() -> None:
    """Takes out the silent step hooks that a trace left where compiled code was guarded by torch's tables of them."""
    from torch.optim import optimizer

    for table in (optimizer._global_optimizer_pre_hooks, optimizer._global_optimizer_post_hooks):
        for key, hook in list(table.items()):
            if getattr(getattr(hook, "__self__", None), "stays", False):
                del table[key]


@pytest.fixture(autouse=True)
def nothing_of_the_trace_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compares the process before the first test with the process after each one; free where torch is not loaded."""
    if "torch" not in sys.modules:
        yield
        return
    before = request.getfixturevalue("untouched")
    yield
    let_compiled_steps_go()
    after = residue()
    left = [name for name in before if before[name] is not after[name] and before[name] != after[name]]
    assert not left, f"the trace left these behind: {', '.join(left)}"


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") != "true" or reporter is None:
        return
    skipped = reporter.stats.get("skipped", [])
    if skipped and session.exitstatus == pytest.ExitCode.OK:
        reporter.write_line(f"CI=true: {len(skipped)} skipped tests count as failed", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
