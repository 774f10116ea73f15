"""The exact step as the terminal, the page and JSON show it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.cells import cell_len

from precaudit.model.exact import ExactLine, ExactOperation, ExactStep
from precaudit.model.wire import Report
from precaudit.report import render
from tests.report import samples

SPLIT = {"gradient": 0.01, "optimizer": 0.4, "write-back": 0.39}
EXACT = ExactStep(
    step=2,
    followed=0.972,
    not_followed={"mkldnn_rnn_layer": 12, "c10d::allreduce_": 1},
    budget=[
        ExactLine(what="loss", error=0.0001, absolute=0.0003, size=3.0),
        ExactLine(what="log-probabilities", absolute=0.0021),
        ExactLine(what="gradient", name="norm.bias", absolute=1e-9, nil=True),
        ExactLine(what="gradient", name="norm.weight", error=0.005, absolute=1.0, size=200.0, partial=True),
        ExactLine(what="before reduction", error=0.02, absolute=1.0, size=50.0),
        ExactLine(what="update", name="norm.weight", error=0.43, split=SPLIT),
        ExactLine(what="update", name=samples.HOSTILE, error=0.02, split=SPLIT),
        ExactLine(what="update", name="head.weight", error=0.01),
    ],
    operations=[
        ExactOperation(
            operation="silu",
            dtype="bfloat16",
            phase="forward",
            path="train.py",
            line=10,
            local=0.03,
            error=0.031,
            added=0.03,
        ),
        ExactOperation(
            operation="sub",
            dtype="float32",
            phase="forward",
            times=3,
            error=0.31,
            amplification=3e6,
            added=0.31,
            path=samples.HOSTILE,
            line=3,
            module="blocks.3",
        ),
    ],
)


@pytest.fixture
def report() -> Report:
    return samples.trace().model_copy(update={"exact": EXACT})


def test_the_terminal_says_what_was_off_by_how_much_and_where_it_was_lost(report: Report, tmp_path: Path) -> None:
    text = " ".join(render(report, "text", root=tmp_path, width=100).split())
    for said in (
        "97 % of floating elements followed; not followed: mkldnn_rnn_layer 12 times, c10d::allreduce_ 1 time",
        "loss off by 0.01 %",
        "log-probabilities off by 0.0021 nats on average",
        "before reduction off by 2 %",
        "gradients 1 of rounding alone, where the exact gradient is zero; 1 of 2 not followed all the way",
        "updates off by 2 % in the median; worst norm.weight 43 %; gradient 1 %, optimizer 40 %, write-back 39 %",
        "train.py:10 silu (bfloat16, forward): lost 3 % itself; its result is off by 3.1 %",
        "sub (float32, forward, 3 times) in blocks.3: magnified the error of its inputs 3e+06 times, to 31 %",
    ):
        assert said in text


@pytest.mark.parametrize("width", [40, 80, 120])
def test_no_line_is_too_wide_and_nothing_hostile_gets_through(report: Report, tmp_path: Path, width: int) -> None:
    text = render(report, "text", root=tmp_path, width=width)
    assert max(map(cell_len, text.splitlines())) <= width
    assert "\x1b" not in text
    page = render(report, "html", root=tmp_path, width=width)
    assert "<img" not in page
    assert '<section id="exact"' in page
    assert page.count("<td>norm.weight</td>") == 1
    assert 'href="#exact"' in page


def test_json_holds_every_line_and_operation(report: Report, tmp_path: Path) -> None:
    raw = json.loads(render(report, "json", root=tmp_path, width=80))["exact"]
    assert ExactStep.model_validate(raw) == EXACT
    assert json.loads(render(samples.trace(), "json", root=tmp_path, width=80))["exact"] is None
