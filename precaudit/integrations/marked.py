"""What the pytest plugin does once a test asks for it: audits a test, and holds it to its marker and its contract."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

import precaudit
from precaudit.api.audit import Audit

OPTIONS = ("forbid", "contract", "steps", "skip", "fail_on")
"""What @pytest.mark.precision takes."""


def audit_of(default: str) -> Callable[..., AbstractContextManager[Audit]]:
    """The fixture's context manager, which fails the test where findings are as severe as `fail_on`, else `default`."""

    @contextmanager
    def audit(*args: Any, fail_on: str = default, **options: Any) -> Iterator[Audit]:
        with precaudit.audit(*args, **options) as run:
            yield run
        run.raise_for_findings(fail_on)

    return audit


def call(item: pytest.Item, marker: pytest.Mark | None) -> Generator[None]:
    """Audits one test around its call; left alone under `precaudit trace pytest`, whose report tells of its steps."""
    if "_precaudit.runtime.session" in sys.modules:
        return (yield)
    wanted = dict(marker.kwargs) if marker is not None else {}
    if unknown := [*(marker.args if marker is not None else ()), *sorted(set(wanted) - set(OPTIONS))]:
        raise pytest.UsageError(
            f"{item.nodeid}: @pytest.mark.precision: {unknown[0]!r}: no such option; it takes {', '.join(OPTIONS)}"
        )
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


def summary(reporter: Any) -> None:
    """The last lines of a run under --precaudit."""
    calls = [report for reports in reporter.stats.values() for report in reports]
    trained = [dict(report.user_properties) for report in calls if getattr(report, "when", "") == "call"]
    told = [properties["precaudit"] for properties in trained if "precaudit" in properties]
    reporter.section("precaudit")
    reporter.line(f"{len(told)} tests trained, {told.count('findings')} of them with errors or warnings")


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
