"""After every test nothing of the trace is left in this process; under CI=true a skipped test is a failure."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from residues import residue


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
