"""The pytest plugin: a fixture, a marker and `--precaudit` audit what tests train.

    def test_step(precision_audit):
        with precision_audit(model, optimizer):
            train_two_steps()

    @pytest.mark.precision(forbid={"optimizer state": ["bfloat16"]}, contract="tests/precision.lock")
    def test_training(): ...

Nothing of precaudit is imported before a test asks for it, and this file is read by every pytest of the environment:
it is short, and marked.py does the work.
"""

from __future__ import annotations

from typing import Any

import pytest

SEVERITIES = ("error", "warning", "note", "never")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("precaudit", "precision of what tests train")
    group.addoption("--precaudit", action="store_true", help="Audit each test that trains, and show what was found.")
    group.addoption(
        "--precaudit-fail-on",
        choices=SEVERITIES,
        default="error",
        help="A test with a finding of this severity or above fails (default: error).",
    )
    group.addoption(
        "--precaudit-update",
        action="store_true",
        help="Write the contracts that @pytest.mark.precision names, as they are now.",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "precision(forbid={role: [dtype, …]}, contract='precision.lock', steps=2, skip=0, fail_on='error'): audit the "
        "precision of what this test trains, and fail where a rule is broken, a role holds a forbidden dtype or "
        "anything differs from the contract",
    )


@pytest.fixture
def precision_audit(request: pytest.FixtureRequest) -> Any:
    """`precaudit.audit` as a context manager that fails the test where its report has findings.

    Takes what precaudit.audit takes, and `fail_on` ("error", "warning", "note", "never").
    """
    from precaudit.integrations import marked

    return marked.audit_of(request.config.getoption("--precaudit-fail-on"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Any:
    """Audits a test that is marked, or every test under --precaudit."""
    marker = item.get_closest_marker("precision")
    if marker is None and not item.config.getoption("--precaudit"):
        return (yield)
    from precaudit.integrations import marked

    return (yield from marked.call(item, marker))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if config.getoption("--precaudit"):
        from precaudit.integrations import marked

        marked.summary(terminalreporter)
