"""The pytest plugin: a fixture, a marker and `--precaudit` audit what tests train.

    def test_step(precision_audit):
        with precision_audit(model, optimizer):
            train_two_steps()

    @pytest.mark.precision(forbid={"optimizer state": ["bfloat16"]}, contract="tests/precision.lock")
    def test_training(): ...

Nothing of precaudit is imported before a test asks for it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from precaudit.api.audit import Audit

SEVERITIES = ("error", "warning", "note", "never")
OPTIONS = ("forbid", "contract", "steps", "skip", "fail_on")
"""What @pytest.mark.precision takes."""

PrecisionAudit = Callable[..., AbstractContextManager["Audit"]]


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
def precision_audit(request: pytest.FixtureRequest) -> PrecisionAudit:
    """`precaudit.audit` as a context manager that fails the test where its report has findings.

    Takes what precaudit.audit takes, and `fail_on` ("error", "warning", "note", "never").
    """
    default = request.config.getoption("--precaudit-fail-on")

    @contextmanager
    def audit(*args: Any, fail_on: str = default, **options: Any) -> Iterator[Audit]:
        import precaudit

        with precaudit.audit(*args, **options) as run:
            yield run
        run.raise_for_findings(fail_on)

    return audit


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Audits a test that is marked, or every test under --precaudit."""
    marker = item.get_closest_marker("precision")
    if marker is None and not item.config.getoption("--precaudit"):
        return (yield)
    if "_precaudit.runtime.session" in sys.modules:  # precaudit trace pytest: its report tells of these steps
        return (yield)
    wanted = dict(marker.kwargs) if marker is not None else {}
    if unknown := [*(marker.args if marker is not None else ()), *sorted(set(wanted) - set(OPTIONS))]:
        raise pytest.UsageError(
            f"{item.nodeid}: @pytest.mark.precision: {unknown[0]!r}: no such option; it takes {', '.join(OPTIONS)}"
        )
    import precaudit

    forbidden = _forbidden(item, wanted.pop("forbid", {}))
    contract = wanted.pop("contract", None)
    fail_on = wanted.pop("fail_on", item.config.getoption("--precaudit-fail-on"))
    with precaudit.audit(**{"skip": 0, **wanted}) as run:
        result = yield
    if run.report.coverage.attempts:  # as a property it also reaches xdist's controller, and --junitxml
        item.user_properties.append(("precaudit", run.report.status))
    if run.findings:
        item.add_report_section("call", "precaudit", run.text())
    if marker is not None and not run.report.coverage.steps:
        pytest.fail(
            f"precaudit: no optimizer step was seen in {item.name}, so nothing of it was audited", pytrace=False
        )
    if contract is not None:
        _hold(item.config, item.config.rootpath / contract, run)
    held = [
        f"{row.role.replace('_', ' ')} is {row.dtype} in {row.tensors} tensors"
        for row in run.roles
        if row.dtype in forbidden.get(row.role, ())
    ]
    if held:
        pytest.fail(f"precaudit: {'; '.join(held)}: forbidden by @pytest.mark.precision", pytrace=False)
    run.raise_for_findings(fail_on)
    return result


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if not config.getoption("--precaudit"):
        return
    calls = [report for reports in terminalreporter.stats.values() for report in reports]
    trained = [dict(report.user_properties) for report in calls if getattr(report, "when", "") == "call"]
    told = [properties["precaudit"] for properties in trained if "precaudit" in properties]
    terminalreporter.section("precaudit")
    terminalreporter.line(f"{len(told)} tests trained, {told.count('findings')} of them with errors or warnings")


def _hold(config: pytest.Config, path: Path, run: Audit) -> None:
    """Fails the test where its training differs from its contract; writes that contract under --precaudit-update."""
    from precaudit.contracts import drift, hold, lockfile, precision

    if config.getoption("--precaudit-update"):
        hold.renew(path, run.report)
        return
    if not path.exists():
        pytest.fail(f"precaudit: {path}: no such contract; write it with pytest --precaudit-update", pytrace=False)
    changes = drift.compare(lockfile.read(path), precision.of_report(run.report)).changes
    if changes:
        pytest.fail(
            f"precaudit: differs from {path}: {'; '.join(map(str, changes))} (accept it: pytest --precaudit-update)",
            pytrace=False,
        )


def _forbidden(item: pytest.Item, given: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Role -> the dtypes that none of its tensors may have; roles spelled as reports show them, or as JSON does."""
    from precaudit.model.vocabulary import Role

    found = {}
    for name, dtypes in given.items():
        role = name.replace(" ", "_")
        if role not in {known.value for known in Role}:
            raise pytest.UsageError(
                f"{item.nodeid}: @pytest.mark.precision: forbid: {name!r} is no role; "
                f"roles: {', '.join(sorted(known.value for known in Role))}"
            )
        found[role] = (dtypes,) if isinstance(dtypes, str) else tuple(str(d).removeprefix("torch.") for d in dtypes)
    return found
