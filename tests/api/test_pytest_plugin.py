"""The pytest plugin, in pytest runs of its own: what is found fails the test that trained it."""

from __future__ import annotations

import sys

import pytest

TRAINING = """
import pytest
import torch

def train(dtype, steps=3, audit=None):
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 4).to(dtype)
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(steps):
        model(torch.ones(2, 8, dtype=dtype)).float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
"""


def run(pytester: pytest.Pytester, tests: str, *options: str) -> pytest.RunResult:
    """A pytest process over this one test file."""
    pytester.makepyfile(test_training=TRAINING + tests)
    loaded = [] if _is_installed() else ["-p", "precaudit.integrations.pytest_plugin"]
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:xdist", *loaded, *options)


def _is_installed() -> bool:
    from importlib.metadata import entry_points

    return any(point.name == "precaudit" for point in entry_points(group="pytest11"))


def test_a_marked_test_fails_where_a_rule_is_broken(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        "@pytest.mark.precision\ndef test_low(): train(torch.bfloat16)\n"
        "@pytest.mark.precision\ndef test_high(): train(torch.float32)\n",
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*PA301 low-precision-optimizer-state*"])


def test_a_forbidden_dtype_fails_though_no_rule_is_broken(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        "@pytest.mark.precision(forbid={'optimizer state': ['float32']})\ndef test_high(): train(torch.float32)\n",
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*optimizer state is float32 in * tensors: forbidden by @pytest.mark.precision*"])


def test_a_marked_test_that_trains_nothing_fails(pytester: pytest.Pytester) -> None:
    result = run(pytester, "@pytest.mark.precision\ndef test_idle(): pass\n")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*no optimizer step was seen in test_idle, so nothing of it was audited*"])


def test_an_unknown_option_of_the_marker_is_named(pytester: pytest.Pytester) -> None:
    result = run(pytester, "@pytest.mark.precision(forbids={})\ndef test_one(): pass\n")
    result.stdout.fnmatch_lines(["*'forbids': no such option; it takes forbid, contract, steps, skip, fail_on*"])
    assert result.ret != 0


def test_an_unknown_role_is_named(pytester: pytest.Pytester) -> None:
    result = run(pytester, "@pytest.mark.precision(forbid={'optimiser': 'bfloat16'})\ndef test_one(): pass\n")
    result.stdout.fnmatch_lines(["*forbid: 'optimiser' is no role; roles: accumulator,*"])
    assert result.ret != 0


def test_the_fixture_audits_a_part_of_a_test(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        "def test_low(precision_audit):\n"
        "    with precision_audit(): train(torch.bfloat16, 4)\n"
        "def test_told(precision_audit):\n"
        "    with precision_audit(fail_on='never') as run: train(torch.bfloat16, 4)\n"
        "    assert 'PA301' in {f.rule for f in run.findings}\n",
    )
    result.assert_outcomes(passed=1, failed=1)


def test_with_the_option_each_test_that_trains_is_audited(pytester: pytest.Pytester) -> None:
    tests = "def test_low(): train(torch.bfloat16)\ndef test_high(): train(torch.float32)\ndef test_idle(): pass\n"
    run(pytester, tests).assert_outcomes(passed=3)
    audited = run(pytester, tests, "--precaudit")
    audited.assert_outcomes(passed=2, failed=1)
    audited.stdout.fnmatch_lines(["2 tests trained, 1 of them with errors or warnings"])
    run(pytester, tests, "--precaudit", "--precaudit-fail-on", "never").assert_outcomes(passed=3)


def test_a_test_that_fails_by_itself_keeps_its_own_error(pytester: pytest.Pytester) -> None:
    result = run(pytester, "@pytest.mark.precision\ndef test_one():\n    train(torch.bfloat16)\n    assert 1 == 2\n")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*assert 1 == 2*"])


def test_the_plugin_unused_imports_nothing_of_precaudit(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_idle="import sys\n"
        "heavy = {'torch', 'pydantic', 'precaudit.api.audit', 'precaudit.integrations.marked'}\n"
        "def test_idle(): assert not heavy & set(sys.modules)"
    )
    loaded = [] if _is_installed() else ["-p", "precaudit.integrations.pytest_plugin"]
    pytester.runpytest_subprocess("-p", "no:cacheprovider", *loaded).assert_outcomes(passed=1)


CONTRACT = """
import os
@pytest.mark.precision(contract='precision.lock', fail_on='never')
def test_held(): train(getattr(torch, os.environ['DTYPE']))
"""


@pytest.mark.slow
def test_a_contract_is_written_when_asked_and_then_held(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DTYPE", "float32")
    missing = run(pytester, CONTRACT)
    missing.assert_outcomes(failed=1)
    missing.stdout.fnmatch_lines(["*no such contract; write it with pytest --precaudit-update*"])
    run(pytester, CONTRACT, "--precaudit-update").assert_outcomes(passed=1)
    run(pytester, CONTRACT).assert_outcomes(passed=1)
    monkeypatch.setenv("DTYPE", "bfloat16")
    drifted = run(pytester, CONTRACT)
    drifted.assert_outcomes(failed=1)
    drifted.stdout.fnmatch_lines(["*differs from *precision.lock: *optimizer state*float32*bfloat16*"])


@pytest.mark.slow
def test_workers_of_xdist_audit_and_the_summary_counts_them_all(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_training=TRAINING + "def test_low(): train(torch.bfloat16)\ndef test_high(): train(torch.float32)\n"
    )
    loaded = [] if _is_installed() else ["-p", "precaudit.integrations.pytest_plugin"]
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", *loaded, "-n", "2", "--precaudit")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*PA301*", "2 tests trained, 1 of them with errors or warnings"])


@pytest.mark.slow
def test_under_precaudit_trace_a_marked_test_is_left_to_the_trace(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_training=TRAINING + "@pytest.mark.precision\ndef test_low(): train(torch.bfloat16, 6)\n")
    loaded = [] if _is_installed() else ["-p", "precaudit.integrations.pytest_plugin"]
    pytest_words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *loaded, "test_training.py"]
    stopped = pytester.run(sys.executable, "-m", "precaudit", "trace", *pytest_words)
    assert stopped.ret == 1
    stopped.stderr.fnmatch_lines(["x PA301*", "*was stopped on purpose after step 3*"])
    through = pytester.run(sys.executable, "-m", "precaudit", "trace", "--keep-going", *pytest_words)
    through.assert_outcomes(passed=1)
    through.stderr.fnmatch_lines(["x PA301*"])
