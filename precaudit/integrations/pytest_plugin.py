"""The pytest plugin: a fixture, a marker and `--precaudit` audit what tests train.

    def test_step(precision_audit):
        with precision_audit(model, optimizer):
            train_two_steps()

    @pytest.mark.precision(forbid={"optimizer state": ["bfloat16"]})
    def test_training(): ...

Nothing of precaudit is imported before a test asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from precaudit.api.audit import Audit

SEVERITIES = ("error", "warning", "note", "never")
OPTIONS = ("forbid", "steps", "skip", "fail_on")
"""What @pytest.mark.precision takes."""

PrecisionAudit = Callable[..., AbstractContextManager["Audit"]]
_COUNTS = pytest.StashKey[list[int]]()
"""How many tests trained, and how many of them had findings."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("precaudit", "precision of what tests train")
    group.addoption("--precaudit", action="store_true", help="Audit each test that trains, and show what was found.")
    group.addoption(
        "--precaudit-fail-on",
        choices=SEVERITIES,
        default="error",
        help="A test with a finding of this severity or above fails (default: error).",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "precision(forbid={role: [dtype, …]}, steps=2, skip=0, fail_on='error'): audit the precision of what this "
        "test trains, and fail where a rule is broken or a role holds a forbidden dtype",
    )
    config.stash[_COUNTS] = [0, 0]


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
    wanted = dict(marker.kwargs) if marker is not None else {}
    if unknown := [*(marker.args if marker is not None else ()), *sorted(set(wanted) - set(OPTIONS))]:
        raise pytest.UsageError(
            f"{item.nodeid}: @pytest.mark.precision: {unknown[0]!r}: no such option; it takes {', '.join(OPTIONS)}"
        )
    import precaudit

    forbidden = _forbidden(item, wanted.pop("forbid", {}))
    fail_on = wanted.pop("fail_on", item.config.getoption("--precaudit-fail-on"))
    with precaudit.audit(**{"skip": 0, **wanted}) as run:
        result = yield
    _count(item, run)
    if run.findings:
        item.add_report_section("call", "precaudit", run.text())
    if marker is not None and not run.report.coverage.steps:
        pytest.fail(
            f"precaudit: no optimizer step was seen in {item.name}, so nothing of it was audited", pytrace=False
        )
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
    trained, found = config.stash[_COUNTS]
    if config.getoption("--precaudit"):
        terminalreporter.section("precaudit")
        terminalreporter.line(f"{trained} tests trained, {found} of them with errors or warnings")


def _count(item: pytest.Item, run: Audit) -> None:
    counts = item.config.stash[_COUNTS]
    counts[0] += run.report.coverage.attempts > 0
    counts[1] += bool(run.findings)


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
