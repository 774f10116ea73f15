"""--verify-undisturbed: says that a run is the same, in what it differs, and when nothing can be said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from desk import Desk

from precaudit.launch.verify import Records, compare, read_records, says

TRAIN = """
import sys, torch
torch.manual_seed(0)
torch.set_num_threads(1)
nn = torch.nn
model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
optimizer = torch.optim.AdamW(model.parameters())
for step in range(5):
    {when}
    model(torch.randn(6, 4)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
"""


def test_a_run_is_compared_bit_by_bit_with_one_without_the_trace(real_desk: Desk) -> None:
    result = real_desk.trace(TRAIN.format(when=""), "--verify-undisturbed")
    assert result.code == 0, result.stderr
    line = next(line for line in result.ours if "undisturbed" in line)
    assert line == (
        "precaudit: undisturbed: with and without the trace the same, bit for bit, in 3 optimizer steps: "
        "3 losses, 18 gradients, 18 parameters, 54 optimizer states, 9 buffers, 9 random states"
    )
    assert line.removeprefix("precaudit: ") in result.report["coverage"]["notes"]


@pytest.mark.parametrize(
    ("when", "code", "said"),
    [
        (
            "if step == 1 and '_precaudit.runtime.session' in sys.modules: torch.rand(1)",
            3,
            "disturbed: with and without the trace the run differs, first at optimizer step 2: loss 0; this is a bug",
        ),
        (
            "if step == 1: torch.seed()",
            0,
            "not verified: two runs without the trace differ from each other, first at optimizer step 2: loss 0; seed",
        ),
    ],
    ids=["the trace draws a number", "never the same twice"],
)
def test_what_differs_is_said_and_whose_doing_it_is(real_desk: Desk, when: str, code: int, said: str) -> None:
    result = real_desk.trace(TRAIN.format(when=when), "--verify-undisturbed")
    assert any(said in line for line in result.ours), result.stderr
    assert result.code == code


def records(*events: tuple[str, dict[str, str]]) -> Records:
    return Records([(0, list(events))])


def test_the_first_difference_is_named_and_buffers_of_modules_that_wait_for_the_collector_are_none() -> None:
    one = records(("backward", {"loss 0": "a"}), ("step", {"parameter w": "b", "buffer old.mean": "x"}))
    assert str(compare(one, records(("backward", {"loss 0": "a"}), ("step", {"parameter w": "b"})))) == (
        "1 optimizer step: 1 loss, 1 parameter"
    )
    other = records(("backward", {"loss 0": "a"}), ("step", {"parameter w": "c", "parameter v": "d"}))
    assert compare(one, other).difference == "first at optimizer step 1: parameter v, parameter w"
    assert compare(one, records(("gradients", {}))).difference == (
        "at optimizer step 1: a backward under the trace, a gradients without it"
    )
    assert "the run goes on under the trace" in compare(one, records(("backward", {"loss 0": "a"}))).difference
    assert compare(one, Records()).difference == "1 processes trained under the trace and 0 without it"
    assert says(Records(), Records(), None) == ("not verified: no backward and no optimizer step was recorded", False)


def test_a_record_that_breaks_off_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    line = json.dumps({"rank": 1, "event": "step", "rows": {"parameter w": "a"}})
    (tmp_path / "record-7.jsonl").write_text(f"{line}\n{line[:20]}")
    found = read_records(tmp_path)
    assert found.processes == [(1, [("step", {"parameter w": "a"})])]
    assert found.covers(found)
    assert not Records().covers(found)


def test_runs_that_were_ended_a_moment_apart_are_no_program_that_never_does_the_same_twice() -> None:
    def run(loss: str, *further: tuple[str, dict[str, str]]) -> Records:
        return records(("backward", {"loss 0": loss}), ("step", {"parameter w": "b"}), *further)

    more = ("backward", {"loss 0": "c"})
    said, ours = says(run("other"), run("a"), run("a", more))
    assert ours
    assert said.startswith("disturbed: with and without the trace the run differs, first at optimizer step 1: loss 0;")
    assert says(run("other"), run("a", more), run("a"))[1]
    assert not says(run("other"), run("a"), run("b"))[1]
