"""`precaudit checkpoint` reads values: what it counts is what torch counts, and what it says of them is so."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Said, Trained, save_safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

from precaudit.checkpoint import content
from precaudit.checkpoint.leaves import Piece, Tensor
from precaudit.checkpoint.masters import _spacing
from precaudit.checkpoint.values import CHUNK, count, one_value

Look = Callable[..., Said]
Make = Callable[..., Trained]
READ = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2, torch.float8_e4m3fn]


def on_disk(path: Path, tensor: torch.Tensor, before: bytes = b"") -> Tensor:
    raw = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    path.write_bytes(before + raw)
    name = str(tensor.dtype).removeprefix("torch.")
    return Tensor(name, tuple(tensor.shape), len(raw), None, (Piece(path, len(before), len(raw)),))


# ---- counting


@pytest.mark.parametrize("dtype", READ, ids=str)
def test_every_bit_pattern_is_counted_as_torch_counts_it(tmp_path: Path, dtype: torch.dtype) -> None:
    size = torch.empty((), dtype=dtype).element_size()
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)
    if size <= 2:  # all that there are, several times
        numbers = every.view(torch.uint8).repeat(3).view(dtype)
    else:  # all of the upper 16 bits, with none, one and all of the lower bits set
        tails = [0, 1, (1 << (8 * size - 16)) - 1]
        top = torch.arange(1 << 16, dtype=torch.int64) << (8 * size - 16)
        whole = torch.cat([top | tail for tail in tails])
        numbers = (whole.to(torch.int32) if size == 4 else whole).view(dtype)
    found = count(on_disk(tmp_path / "x", numbers, b"odd"), whole=True, signs=True)
    plain = numbers.double()
    assert found is not None
    assert found[:4] == (numbers.numel(), plain.isnan().sum(), plain.isinf().sum(), (plain < 0).sum())


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_single_bad_value_is_found_anywhere(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    dtype = data.draw(st.sampled_from(READ))
    numbers = torch.rand(CHUNK + 5).to(dtype)
    at = data.draw(st.integers(0, numbers.numel() - 1))
    numbers[at] = float("nan")
    found = count(on_disk(tmp_path_factory.mktemp("x") / "x", numbers), whole=True, signs=True)
    assert found is not None
    assert found[:4] == (numbers.numel(), 1, 0, 0)


def test_minus_zero_is_not_below_zero_and_a_mask_is_told(tmp_path: Path) -> None:
    zeros = count(on_disk(tmp_path / "x", torch.tensor([-0.0, 0.0, 1.0, -1.0])), whole=True, signs=True)
    mask = torch.zeros(64, 64).masked_fill(torch.ones(64, 64).tril() == 0, float("-inf"))
    masks = count(on_disk(tmp_path / "y", mask), whole=True, signs=False)
    assert zeros is not None
    assert masks is not None
    assert (zeros.negative, zeros.masks, masks.masks, masks.inf) == (1, False, True, 64 * 63 // 2)


def test_a_sample_is_spread_over_the_whole_tensor(tmp_path: Path) -> None:
    numbers = torch.rand(1_000_000)
    numbers[::100] = float("nan")
    found = count(on_disk(tmp_path / "x", numbers), whole=False, signs=False)
    assert found is not None
    assert found.seen == 65_536
    assert found.nan / found.seen == pytest.approx(0.01, rel=0.1)


def test_values_are_read_at_a_gigabyte_a_second(tmp_path: Path) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        tensor = on_disk(tmp_path / "x", torch.rand(1 << 24).to(dtype))
        best = min(_seconds(tensor) for _ in range(3))
        assert tensor.size / best > 1e9


def _seconds(tensor: Tensor) -> float:
    began = time.process_time()
    count(tensor, whole=True, signs=True)
    return time.process_time() - began


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        (torch.randn(4096), ""),
        (torch.randn(4096).bfloat16().float(), "bfloat16"),
        (torch.randn(4096).half().float(), "float16"),
        ((torch.randn(4096) * 2.0**-15).half().float(), "float16"),
        ((torch.randn(4096) * 2.0**-30).bfloat16().float(), "bfloat16"),
        (torch.randn(4096).half().float() * 2.0**30, ""),
        (torch.ones(4096), ""),
    ],
    ids=["float32", "bfloat16", "float16", "subnormal float16", "small bfloat16", "beyond float16", "ones"],
)
def test_content_of_float32_is_the_dtype_that_it_survives_a_round_trip_through(
    tmp_path: Path, numbers: torch.Tensor, expected: str
) -> None:
    found = content.look(on_disk(tmp_path / "x", numbers))
    assert found is not None
    assert found.hollow == expected
    if expected:
        assert torch.equal(numbers.to(getattr(torch, expected)).float(), numbers)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_spacing_is_the_distance_to_the_next_number(dtype: torch.dtype) -> None:
    for value in (1.0, 1.5, 3.1e-7, 6e-5, 300.0, 2.0**-24):
        here = torch.tensor(value, dtype=dtype)
        after = (here.view(torch.int16) + 1).view(dtype)
        assert _spacing(float(here), str(dtype).removeprefix("torch.")) == float(after) - float(here)


def test_one_value_is_told_only_where_all_elements_have_it(tmp_path: Path) -> None:
    nearly = torch.ones(513)
    nearly[-1] += 2.0**-23
    assert one_value(on_disk(tmp_path / "x", torch.ones(513))) == b"\0\0\x80\x3f"
    assert one_value(on_disk(tmp_path / "x", nearly)) == b""


# ---- what is said


def saved(path: Path, made: Trained, **more: Any) -> Path:
    torch.save({"model": made.model.state_dict(), "optimizer": made.optimizer.state_dict(), **more}, path)
    return path


def test_nan_weights_and_inf_state_are_errors_that_name_them(tmp_path: Path, checkpoint: Look, trained: Make) -> None:
    made = trained()
    with torch.no_grad():
        made.model[0].weight[3, 4:7] = float("nan")
        made.optimizer.state[made.model[3].bias]["exp_avg"][0] = float("-inf")
    said = checkpoint(saved(tmp_path / "last.pt", made))
    assert (said.code, said.rules) == (1, [("PA213", "error"), ("PA213", "error")])
    assert {f["message"]: f["evidence"] for f in said.report["findings"]} == {
        "parameters are nan: 3 elements of model.0.weight": {"inf_share": 3 / 512},
        "optimizer state is inf: 1 element of optimizer.state.5.exp_avg": {"inf_share": 1 / 8},
    }
    assert {row["verdict"] for row in said.report["roles"] if row["role"] == "optimizer_state"} == {"violation"}


def test_masks_and_observers_may_hold_inf(tmp_path: Path, checkpoint: Look) -> None:
    mask = torch.zeros(8, 8).masked_fill(torch.ones(8, 8).tril() == 0, float("-inf"))
    observed = torch.full((8,), float("inf"))
    save_safetensors(
        tmp_path / "m.safetensors", {"a.weight": torch.rand(8, 8), "a.bias_k": mask, "a.min_val": observed}
    )
    assert checkpoint(tmp_path / "m.safetensors").rules == []


def test_a_sampled_look_says_what_it_did_not_see(tmp_path: Path, checkpoint: Look) -> None:
    weights = torch.rand(1_000_000)
    weights[500_000] = float("nan")
    save_safetensors(tmp_path / "m.safetensors", {"a.weight": weights})
    assert checkpoint(tmp_path / "m.safetensors").rules == [("PA213", "error")]
    said = checkpoint("--values", "sampled", tmp_path / "m.safetensors")
    assert said.rules == []
    assert any("65,536 elements of each were looked at" in note for note in said.report["coverage"]["notes"])


@pytest.mark.parametrize(
    ("dtype", "value", "says"),
    [
        (torch.bfloat16, 256.0, "it is 256, where it has stopped"),
        (torch.bfloat16, 20.0, "it is 20, and will stop at 256"),
        (torch.float16, 2048.0, "it is 2,048, where it has stopped"),
    ],
)
def test_a_low_step_counter_is_told_with_the_value_it_became(
    tmp_path: Path, checkpoint: Look, trained: Make, dtype: torch.dtype, value: float, says: str
) -> None:
    made = trained()
    for state in made.optimizer.state.values():
        state["step"] = torch.tensor(value, dtype=dtype)
    said = checkpoint(saved(tmp_path / "last.pt", made))
    assert said.rules == [("PA303", "error")]
    assert said.finding("PA303")["message"].endswith(says)
    assert torch.tensor(value, dtype=dtype) + 1 == value or value < 256


def test_masters_are_compared_with_weights_by_order_by_name_and_when_flat(
    tmp_path: Path, checkpoint: Look, trained: Make
) -> None:
    made = trained()
    masters = {name: p.detach().clone() for name, p in made.model.named_parameters()}
    low = {name: p.bfloat16() for name, p in masters.items()}
    stale = {name: (p + 0.02 * p.norm() / p.numel() ** 0.5).bfloat16() for name, p in masters.items()}
    forms = {"name": masters, "order": list(masters.values())}
    forms["flat"] = [torch.cat([p.view(-1) for p in masters.values()] + [torch.zeros(3)])]
    for form, held in forms.items():
        for weights, rules in ((low, []), (stale, [("PA605", "warning")])):
            path = tmp_path / f"{form}.pt"
            torch.save({"model": weights, "fp32_params": held, "optimizer": made.optimizer.state_dict()}, path)
            assert checkpoint(path).rules == rules, form


def test_masters_of_other_weights_are_not_compared(tmp_path: Path, checkpoint: Look, trained: Make) -> None:
    made = trained()
    masters = [torch.randn_like(p) for p in made.model.parameters()]
    low = {name: p.detach().bfloat16() for name, p in made.model.named_parameters()}
    torch.save({"model": low, "fp32_params": masters, "optimizer": made.optimizer.state_dict()}, tmp_path / "x.pt")
    assert checkpoint(tmp_path / "x.pt").rules == []


def test_ones_that_never_moved_are_told_by_what_keeps_them(tmp_path: Path, checkpoint: Look, trained: Make) -> None:
    low, hollow, frozen = trained(torch.bfloat16), trained(), trained()
    with torch.no_grad():
        for made in (hollow, frozen):
            made.model[1].weight.fill_(1.0)
        for p in hollow.model.parameters():
            p.copy_(p.bfloat16())
    said = {name: checkpoint(saved(tmp_path / f"{name}.pt", made)) for name, made in
            {"low": low, "hollow": hollow, "frozen": frozen}.items()}  # fmt: skip
    found = {name: [severity for rule, severity in one.rules if rule == "PA606"] for name, one in said.items()}
    assert found == {"low": ["warning"], "hollow": ["warning"], "frozen": ["note"]}
    assert said["low"].finding("PA606")["message"].endswith("model.1.weight, after 3 optimizer steps")
    assert checkpoint(saved(tmp_path / "moved.pt", trained())).rules == []
