"""Audits in a real Jupyter kernel: what a cell shows, and that the kernel goes on as before."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

BUILD = """import torch, precaudit
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Linear(32, 4)).to(torch.bfloat16)
optimizer = torch.optim.AdamW(model.parameters())
def train(steps=3):
    for _ in range(steps):
        model(torch.randn(8, 16).bfloat16()).float().square().mean().backward()
        optimizer.step(); optimizer.zero_grad()
"""
AUDIT = "with precaudit.audit(model, optimizer) as run: train()"


def run(folder: Path, *cells: str) -> list[Any]:
    """The last output of each cell, as the notebook's file keeps it."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    return [cell.outputs[-1] if cell.outputs else None for cell in notebook.cells]


def test_an_audit_is_shown_as_a_page_of_its_own_and_as_text(tmp_path: Path) -> None:
    _, _, page, text = run(tmp_path, BUILD, AUDIT, "run", "print(run)")
    shown = page.data["text/html"]
    assert shown.startswith("<iframe srcdoc=")
    assert "PA301" in shown
    assert "<script" not in shown
    assert "sandbox" in shown
    assert "x PA301 low-precision-optimizer-state" in text.text
    assert page.data["text/plain"].startswith("<Audit: ")


def test_rich_shows_it_in_colour(tmp_path: Path) -> None:
    code = "import rich; rich.print(run)"
    *_, shown = run(tmp_path, BUILD, AUDIT, code)
    print(shown)
    assert "PA301" in shown.data["text/html"]
    assert "color:" in shown.data["text/html"]


def test_a_snapshot_is_shown_and_a_line_of_a_cell_is_named(tmp_path: Path) -> None:
    _, page, line = run(
        tmp_path,
        BUILD + "\ntrain(1)",
        "precaudit.snapshot(model, optimizer)",
        AUDIT + "\nprint(*{(f.path, f.line) for f in run.findings if f.rule == 'PA101'})",
    )
    assert "PA301" in page.data["text/html"]
    assert line.text.strip() == "('In[1]', 8)"


def test_the_kernel_trains_on_as_without_an_audit(tmp_path: Path) -> None:
    tail = "train(2)\nprint(float(sum(p.detach().double().sum() for p in model.parameters())))"
    *_, audited = run(tmp_path, BUILD, AUDIT, tail)
    *_, plain = run(tmp_path, BUILD, "train()", tail)
    assert audited.text == plain.text


def test_the_code_of_the_page_runs_cell_by_cell(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "notebooks.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    _, audit, snapshot = run(tmp_path, BUILD.replace("def train(steps=3)", "def train(*_, steps=3)"), *blocks)
    assert "PA301" in audit.data["text/html"]
    assert "PA301" in snapshot.data["text/html"]
