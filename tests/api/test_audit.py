"""`precaudit.audit` around a loop: the trace's own report, nothing changed, nothing left behind."""

from __future__ import annotations

import json
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import unchanged_world
from torch.nn import functional as F

import precaudit
from precaudit.errors import FindingsError, OutputError, ReportError, UsageError


def build(dtype: torch.dtype) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.LayerNorm(32), torch.nn.Linear(32, 4)).to(dtype)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-3)


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int = 4) -> list[float]:
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(steps):
        x = torch.randn(8, 16, generator=generator).to(next(model.parameters()).dtype)
        loss = F.cross_entropy(model(x).float(), torch.randint(4, (8,), generator=generator))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.fixture(autouse=True)
def as_it_was() -> Any:
    with unchanged_world():
        yield


def test_a_bfloat16_model_is_found_with_the_names_that_it_has() -> None:
    model, optimizer = build(torch.bfloat16)
    with precaudit.audit(model, optimizer) as run:
        train(model, optimizer)
    assert {finding.rule for finding in run.findings} >= {"PA101", "PA301"}
    assert not run.ok
    assert not run.inconclusive
    assert run.report.coverage.traced_steps == [1, 2]
    held = {row.name: row.dtypes["AdamW.exp_avg"] for row in run.report.inventory if "AdamW.exp_avg" in row.dtypes}
    assert set(map(tuple, held.values())) == {("bfloat16",)}
    for name, _ in model.named_parameters():
        assert any(fnmatchcase(name, pattern) for pattern in held), (name, held)


def test_the_line_of_an_optimizer_that_was_there_before_is_the_one_that_steps() -> None:
    model, optimizer = build(torch.bfloat16)
    with precaudit.audit(model, optimizer) as run:
        train(model, optimizer)
    (found,) = [f for f in run.findings if f.rule == "PA101"]
    text = Path(__file__).read_text(encoding="utf-8").splitlines()
    assert found.path is not None
    assert found.path.endswith("test_audit.py")
    assert text[(found.line or 0) - 1].strip() == "optimizer.step()"
    assert found.cause is not None
    assert found.cause.text == "parameters were bfloat16 before the audit began"


def test_a_cast_inside_the_block_has_its_line() -> None:
    model, optimizer = build(torch.float32)
    with precaudit.audit(model, optimizer, skip=0) as run:
        model.to(torch.bfloat16)
        train(model, optimizer)
    causes = {f.cause.text for f in run.findings if f.cause is not None}
    assert "parameters were cast to bfloat16" in causes


def test_a_float32_model_is_ok_and_trains_as_it_does_alone() -> None:
    model, optimizer = build(torch.float32)
    alone = train(model, optimizer)
    audited, its_optimizer = build(torch.float32)
    with precaudit.audit(audited, its_optimizer) as run:
        losses = train(audited, its_optimizer)
    assert run.ok
    assert run.findings == []
    assert losses == alone
    for one, other in zip(model.parameters(), audited.parameters(), strict=True):
        assert torch.equal(one, other)


def test_after_the_steps_nothing_of_the_audit_is_left_while_the_loop_runs_on() -> None:
    model, optimizer = build(torch.float32)
    step, to = torch.optim.AdamW.step, torch.nn.Module.to
    with precaudit.audit(model, optimizer) as run:
        train(model, optimizer, 4)
        assert run.over
        assert torch.optim.AdamW.step is step
        assert torch.nn.Module.to is to
        assert not torch.overrides._get_current_function_mode_stack()
    assert run.ok


def test_too_few_steps_are_inconclusive_and_the_report_says_why() -> None:
    model, optimizer = build(torch.float32)
    with precaudit.audit(model, optimizer, steps=3) as run:
        train(model, optimizer, 2)
    assert run.inconclusive
    assert run.report.coverage.notes[-1] == (
        "audit: 2 of 3 steps were watched before the block ended; "
        "let the loop take at least 3 inside it, or say steps=2"
    )


def test_what_the_loop_raises_passes_and_the_report_is_there() -> None:
    model, optimizer = build(torch.bfloat16)
    run = precaudit.audit(model, optimizer, steps=2)

    def fails() -> None:
        with run:
            train(model, optimizer, 1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert "PA101" in {f.rule for f in run.findings}
    assert "before ZeroDivisionError ended the loop" in run.report.coverage.notes[-1]


def test_an_audit_inside_another_is_refused_and_the_outer_one_goes_on() -> None:
    model, optimizer = build(torch.bfloat16)
    with precaudit.audit(model, optimizer) as run:
        with pytest.raises(UsageError, match=r"another audit is going on in this process, begun at test_audit.py:\d+"):
            precaudit.audit(model, optimizer).begin()
        train(model, optimizer)
    assert "PA101" in {f.rule for f in run.findings}


def test_two_audits_after_each_other_each_have_their_report() -> None:
    model, optimizer = build(torch.bfloat16)
    clean, its_optimizer = build(torch.float32)
    with precaudit.audit(model, optimizer) as first:
        train(model, optimizer)
    with precaudit.audit(clean, its_optimizer) as second:
        train(clean, its_optimizer)
    assert not first.ok
    assert second.ok
    with pytest.raises(UsageError, match="this audit has ended; make another one"):
        first.begin()


def test_there_is_no_report_before_the_end() -> None:
    with pytest.raises(UsageError, match="no report yet; it is there once the with block has ended"):
        _ = precaudit.audit().report


def test_steps_that_are_none_are_refused() -> None:
    with pytest.raises(UsageError, match="steps=0, skip=None: at least 1 step is watched, after 0 or more"):
        precaudit.audit(steps=0)


def test_several_models_are_named_by_their_own_modules() -> None:
    critic, its_optimizer = build(torch.bfloat16)
    actor, other = build(torch.float32)
    with precaudit.audit({"actor": actor, "critic": critic}, [other, its_optimizer]) as run:
        train(actor, other, 1)
        train(critic, its_optimizer, 1)
        train(actor, other, 1)
        train(critic, its_optimizer, 1)
    rows = {(row.role, row.dtype): row.tensors for row in run.roles}
    count = len(list(actor.parameters()))
    assert rows["master_weight", "bfloat16"] == count
    assert rows["master_weight", "float32"] == count


def test_an_audited_function_returns_what_it_returns_and_tells_its_audit() -> None:
    seen: list[Any] = []
    model, optimizer = build(torch.bfloat16)
    audited: Any = precaudit.audited(steps=2, on_report=seen.append)(train)
    assert len(audited(model, optimizer)) == 4
    assert seen == [audited.audit]
    assert not seen[0].ok


def test_an_audited_function_prints_what_was_found(capsys: pytest.CaptureFixture[str]) -> None:
    audited: Any = precaudit.audited(train)
    audited(*build(torch.float32))
    assert capsys.readouterr().err == ""
    audited(*build(torch.bfloat16))
    assert "PA101 missing-master-weights" in capsys.readouterr().err


def test_raise_for_findings_tells_the_report() -> None:
    model, optimizer = build(torch.bfloat16)
    with precaudit.audit(model, optimizer) as run:
        train(model, optimizer)
    run.raise_for_findings("never")
    with pytest.raises(FindingsError, match="PA101 missing-master-weights"):
        run.raise_for_findings("error")


@pytest.mark.parametrize(
    ("ending", "begins"), [("json", "{"), ("html", "<!doctype html>"), ("md", "#"), ("sarif", "{"), ("xml", "<?xml")]
)
def test_a_report_is_saved_as_its_name_says(tmp_path: Path, ending: str, begins: str) -> None:
    model, optimizer = build(torch.bfloat16)
    with precaudit.audit(model, optimizer) as run:
        train(model, optimizer)
    run.save(tmp_path / f"report.{ending}")
    assert (tmp_path / f"report.{ending}").read_text(encoding="utf-8").lower().startswith(begins)


def test_a_saved_report_is_loaded_again(tmp_path: Path) -> None:
    model, optimizer = build(torch.bfloat16)
    with precaudit.audit(model, optimizer) as run:
        train(model, optimizer)
    run.save(tmp_path / "report.json")
    again = precaudit.load(tmp_path / "report.json")
    assert again.report == run.report
    assert [f.rule for f in again.findings] == [f.rule for f in run.findings]
    with pytest.raises(ReportError, match="no such report"):
        precaudit.load(tmp_path / "none.json")
    with pytest.raises(OutputError, match="there is no folder"):
        run.save(tmp_path / "no" / "report.json")


def test_flat_values_name_the_dtypes_and_the_measured_numbers() -> None:
    model, optimizer = build(torch.bfloat16)
    with precaudit.audit(model, optimizer) as run:
        train(model, optimizer)
    flat = run.flat()
    assert flat["precision/optimizer_state"] == "bfloat16"
    assert flat["precision/status"] == "findings"
    (found,) = [f for f in run.findings if f.rule == "PA101"]
    assert flat["precision/PA101/updates_lost"] == found.evidence["updates_lost"]


def test_check_is_the_static_pass(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "import torch\n"
        "model = torch.nn.Linear(4, 4).bfloat16()\n"
        "optimizer = torch.optim.AdamW(model.parameters())\n"
        "model(torch.ones(2, 4).bfloat16()).sum().backward()\n"
        "optimizer.step()\n",
        encoding="utf-8",
    )
    found = precaudit.check(wrong)
    assert ("PA301", 3) in {(f.rule, f.line) for f in found.findings}
    assert not found.ok


def test_check_tells_the_cells_of_a_notebook_that_it_cannot_read(tmp_path: Path) -> None:
    cells = [{"cell_type": "code", "metadata": {}, "source": [text], "outputs": []} for text in ("x = 1\n", "def (:\n")]
    book = tmp_path / "nb.ipynb"
    book.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}), encoding="utf-8")
    found = precaudit.check([book])
    assert found.inconclusive
    assert any("cell 2" in line for line in found.report.coverage.skipped)


def test_in_a_notebook_the_page_stands_in_a_frame_of_its_own() -> None:
    model, optimizer = build(torch.bfloat16)
    with precaudit.audit(model, optimizer) as run:
        train(model, optimizer)
    page = run._repr_html_()
    assert page.startswith('<iframe srcdoc="&lt;!doctype html&gt;')
    assert "PA101" in page
    assert "<script" not in page


def test_importing_precaudit_imports_none_of_the_heavy_ones() -> None:
    code = (
        "import sys, precaudit; "
        "print([m for m in ('torch', 'libcst', 'pydantic', 'rich', 'click', 'yaml') if m in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert told.stdout.strip() == "[]"


def test_every_public_name_is_there_and_documented() -> None:
    for name in precaudit.__all__:
        public = getattr(precaudit, name)
        assert name == "__version__" or public.__doc__, name
    with pytest.raises(AttributeError, match="module 'precaudit' has no attribute 'adit'"):
        precaudit.adit  # noqa: B018


def test_under_the_trace_the_audit_leaves_the_steps_to_it(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import torch, precaudit\n"
        "model = torch.nn.Linear(4, 4).bfloat16()\n"
        "optimizer = torch.optim.AdamW(model.parameters())\n"
        "with precaudit.audit(model, optimizer) as run:\n"
        "    for _ in range(4):\n"
        "        model(torch.ones(2, 4).bfloat16()).float().sum().backward()\n"
        "        optimizer.step()\n"
        "print(run.inconclusive, run.report.coverage.notes)\n",
        encoding="utf-8",
    )
    told = subprocess.run(
        [sys.executable, "-m", "precaudit", "trace", "--keep-going", str(script)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=240,
    )
    assert told.returncode == 1, told.stderr
    assert "True ['audit: this process runs under precaudit trace, whose report tells of these steps']" in told.stdout
    assert "PA101" in told.stderr
