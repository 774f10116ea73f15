"""`--skip 0`: the first step is traced too, and the program still computes what it computes without a trace."""

from __future__ import annotations

from pathlib import Path

import harness
import pytest

FIXTURES = Path(__file__).parents[2] / "fixtures"


@pytest.mark.parametrize("rule", ["PA101", "PA202", "PA208", "PA301", "PA402", "PA404", "PA203"])
def test_the_first_step_is_traced_and_nothing_is_disturbed(rule: str) -> None:
    path = FIXTURES / rule / "bad.py"
    plain = harness.run(path)
    traced = harness.run(path, traced=True, skip=0)
    assert traced.report is not None
    assert traced.report.coverage.traced_steps[:2] == [1, 2]
    assert (traced.stdout, traced.error, traced.digest) == (plain.stdout, plain.error, plain.digest)
    # What a trace of later steps proves, one of the first proves too.
    assert harness.expected(path).keys() <= {finding.rule for finding in traced.report.findings}


def test_a_run_of_one_step_can_be_traced(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import torch\nmodel = torch.nn.Linear(2, 2).bfloat16()\n"
        "optimizer = torch.optim.AdamW(model.parameters())\n"
        "model(torch.ones(1, 2).bfloat16()).float().sum().backward()\noptimizer.step()\n"
    )
    report = harness.run(script, traced=True, skip=0, steps=1).report
    assert report is not None
    assert report.coverage.traced_steps == [1]
    assert report.coverage.micro_batches == 1
    assert "PA301" in {finding.rule for finding in report.findings}
