"""Findings that only a run on the CPU has: notes where the script chooses its device, loud where it names the CPU."""

from __future__ import annotations

from pathlib import Path

import harness
import pytest

from precaudit.model.wire import Severity

TRAPS = sorted(harness.FIXTURES.glob("PA*/trap_device_chosen_at_run_time.py"))
CHOICE = 'torch.device("cuda" if torch.cuda.is_available() else "cpu")'


def test_every_rule_that_cuda_could_spare_has_such_a_script() -> None:
    assert [path.parent.name for path in TRAPS] == ["PA401", "PA403", "PA404", "PA405", "PA408", "PA411"]


@pytest.mark.parametrize("path", TRAPS, ids=lambda path: path.parent.name)
def test_finding_is_a_note_that_says_only_on_cpu(path: Path) -> None:
    report = harness.traced(path).report
    assert report is not None
    [found] = [finding for finding in report.findings if finding.rule == path.parent.name]
    assert found.severity is Severity.NOTE
    assert "only on CPU" in found.message
    [fact] = [fact for fact in report.facts if fact["attrs"].get("only_on_cpu")]
    assert fact["attrs"]["device"] == "cpu"


@pytest.mark.parametrize("path", TRAPS, ids=lambda path: path.parent.name)
@pytest.mark.parametrize("spelling", ["device", "autocast"])
def test_same_script_for_the_cpu_alone_is_loud(path: Path, spelling: str, tmp_path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if spelling == "device":
        text = text.replace(CHOICE, 'torch.device("cpu")')
    else:
        text = text.replace("autocast(device_type=device.type", 'autocast(device_type="cpu"')
        text = text.replace("autocast(device.type", 'autocast("cpu"')
    script = tmp_path / "train.py"
    script.write_text(text, encoding="utf-8")
    assert path.parent.name in harness.loud(harness.trace(script))


def test_cast_of_the_scripts_own_is_low_on_any_device(tmp_path: Path) -> None:
    """Outside of autocast, or after the script itself made it low again, CUDA computes no wider than the CPU."""
    path = harness.FIXTURES / "PA404" / "trap_device_chosen_at_run_time.py"
    text = path.read_text(encoding="utf-8")
    text = text.replace(
        "loss = smoothed(model(ids[:, :-1]), ids[:, 1:])",
        "logits = model(ids[:, :-1])\n        loss = smoothed(logits, ids[:, 1:])",
    )
    script = tmp_path / "train.py"
    script.write_text(text, encoding="utf-8")
    assert "PA404" in harness.loud(harness.trace(script))
