"""`--fake`: sizes and dtypes of a run that this machine has no memory for, and what is read where no number is."""

from __future__ import annotations

import copy
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import harness
import pytest
import torch
from refusals import answer
from test_scripts import AMP, BF16, F32, RIGHT, WRONG, held
from torch import nn

from precaudit.model.wire import Report
from precaudit.preflight.assumed import Refused
from precaudit.preflight.layer import Layer, start
from precaudit.preflight.room import has_numbers
from precaudit.report import words

SCRIPTS = Path(__file__).parent / "scripts"
LARGE = (1 << 20, 1 << 16)
"""The size of a tensor of 256 GiB in float32."""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Report]]:
    """Traces a script of `scripts/` without numbers, as one rank of a world."""
    layers: list[Layer] = []

    def traced(name: str, *argv: str, size: int = 1, rank: int = 0) -> Report:
        if layers:
            layers.pop().remove()
        layers.append(
            start({"device": "h100", "fake": True, "world": {"size": size, "rank": rank, "node": min(8, size)}})
        )
        if size == 1:
            for variable, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
                monkeypatch.setenv(variable, value)
        done = harness.run(SCRIPTS / name, argv, traced=True, eager=True, values="off", preflight=layers[-1].told)
        assert not done.error, done.error
        assert done.report is not None
        return done.report

    yield traced
    for layer in layers:
        layer.remove()


@pytest.mark.parametrize("words", RIGHT, ids=" ".join)
def test_without_numbers_each_role_holds_what_it_holds_with_them(
    words: tuple[str, ...], run: Callable[..., Report]
) -> None:
    report = run(*words)
    table = held(report)
    assert {role: table.get(role) for role in RIGHT[words]} == RIGHT[words]
    assert harness.loud(report) == {}


@pytest.mark.parametrize("words", WRONG, ids=" ".join)
def test_the_rules_tell_a_wrong_twin_by_its_dtypes(words: tuple[str, ...], run: Callable[..., Report]) -> None:
    assert WRONG[words] <= set(harness.loud(run(*words)))


def bytes_of(report: Report) -> dict[tuple[str, str], int]:
    return {(row.role, row.dtype): row.bytes for row in report.roles if row.dtype is not None}


WIDTH, DEPTH, WORDS = 4096, 4, 65536
WEIGHTS = 2 * WORDS * WIDTH + DEPTH * (8 * WIDTH * WIDTH + 2 * WIDTH)
"""Of `sharded.py`: an embedding and a head, and in each block two matrices and a norm with its bias."""


@pytest.mark.parametrize("size", [8, 512, 2048])
def test_the_bytes_of_each_rank_are_those_of_the_arithmetic(size: int, run: Callable[..., Report]) -> None:
    """Every dimension divides by the ranks: each holds its share of weights, gradients and AdamW's two moments."""
    report = run("sharded.py", str(WIDTH), str(DEPTH), str(WORDS), size=size, rank=size - 1)
    found = bytes_of(report)
    share = 4 * WEIGHTS // size
    assert found["master_weight", "float32"] == share
    assert found["gradient", "float32"] == share
    assert found["optimizer_state", "float32"] == 2 * share
    table = held(report)
    expected = {"matmul_compute": BF16, "forward_weight": BF16, "gradient_reduction": F32}
    assert {role: table.get(role) for role in (*AMP, *expected)} == AMP | expected
    assert harness.loud(report) == {}


def test_a_reduction_in_bfloat16_is_told_of_one_rank_of_many(run: Callable[..., Report]) -> None:
    report = run("sharded.py", "1024", "2", "4096", "wrong", size=64)
    assert held(report)["gradient_reduction"] == BF16
    assert "PA501" in {finding.rule for finding in report.findings}


def test_no_memory_is_taken(fake: Layer) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    weight = nn.Parameter(torch.empty(LARGE))
    nn.init.normal_(weight)
    there = weight.to("cuda", torch.bfloat16)
    loss = (there @ there.T[:, :8]).float().square().mean()
    loss.backward()
    assert (there.device.type, there.dtype, weight.grad is not None) == ("cuda", torch.bfloat16, True)
    assert weight.grad is not None
    assert (weight.grad.dtype, weight.grad.shape, weight.grad.nbytes) == (torch.float32, LARGE, 4 << 36)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_numbers_stay_where_control_flow_asks_for_them(fake: Layer) -> None:
    """A sampler's permutation, token ids, a learning rate's tensor, a step counter."""
    order = torch.randperm(1000)
    assert sorted(order.tolist()) == list(range(1000))
    assert torch.equal(order.cuda().cpu(), order)
    count = torch.zeros((), device="cuda") + 1
    assert [count.item(), (count * 3).item(), int(order.cuda().max())] == [1.0, 3.0, 999]
    assert fake.assumed.rows() == []


def test_what_is_read_of_a_loss_is_one_and_is_listed_with_its_line(fake: Layer) -> None:
    x = torch.randn(8, 8, device="cuda")
    loss = x.square().mean()
    assert (loss.item(), float(loss), bool(loss > 0), f"{loss:.2f}") == (1.0, 1.0, False, "1.00")
    assert loss.cpu().numpy() == 1.0
    assert x.argmax(-1).tolist() == [1] * 8
    assert "size=(8, 8)" in repr(x)
    rows = fake.assumed.rows()
    assert {row["what"] for row in rows} == {f"a number was read that is not there: {n}" for n in ("1.0", "1", "False")}
    assert {row["path"] for row in rows} == {__file__}
    assert all(row["line"] > 0 for row in rows)


def test_a_healthy_run_is_finite_and_its_scaler_steps(fake: Layer) -> None:
    model = nn.Linear(64, 64).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cuda", init_scale=512.0, growth_interval=1)
    taken = []
    optimizer.register_step_post_hook(lambda *args: taken.append(scaler.get_scale()))
    for _ in range(2):
        with torch.autocast("cuda", torch.float16):
            loss = model(torch.randn(4, 64, device="cuda")).float().mean()
        assert torch.isfinite(loss).item()
        assert not torch.isnan(loss).any()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        assert not torch.isinf(nn.utils.clip_grad_norm_(model.parameters(), 1.0))
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert taken == [512.0, 1024.0]
    assert fake.assumed.rows() == []


def test_half_of_an_unknown_mask_is_true_and_a_known_one_is_counted(fake: Layer) -> None:
    x = torch.randn(10, 4, device="cuda")
    known = torch.arange(10, device="cuda") < 3
    assert [x[known].shape, x[x[:, 0] > 0].shape] == [(3, 4), (5, 4)]
    assert (x > 0).nonzero().shape == (20, 2)
    assert [row["what"] for row in fake.assumed.rows()] == ["a mask without numbers: 50% of it true"] * 2


def test_what_a_number_that_is_not_there_is_written_to_has_none(fake: Layer) -> None:
    total = torch.zeros((), device="cuda")
    assert has_numbers(total)
    total += torch.randn(8, device="cuda").sum()
    assert not has_numbers(total)
    assert total.item() == 1.0


def test_copies_and_resized_storages_take_no_memory(fake: Layer) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    module = nn.Module()
    module.register_buffer("kept", torch.empty(LARGE, device="cuda"))
    other = copy.deepcopy(module)
    storage = other.kept.untyped_storage()
    assert (other.kept.device.type, other.kept.shape, storage.size()) == ("cuda", LARGE, 4 << 36)
    storage.resize_(0)
    assert (storage.size(), other.kept.untyped_storage().nbytes()) == (0, 0)
    storage.resize_(4 << 36)
    assert storage.size() == 4 << 36
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_nothing_is_saved_of_what_has_no_numbers(fake: Layer, tmp_path: Path) -> None:
    model = nn.Linear(512, 512).cuda()
    torch.save({"model": model.state_dict()}, tmp_path / "a.pt")
    torch.save({"epoch": torch.tensor(3)}, tmp_path / "b.pt")
    assert not (tmp_path / "a.pt").exists()
    assert torch.load(tmp_path / "b.pt")["epoch"] == 3
    assert [row["what"] for row in fake.assumed.rows()] == [
        "torch.save wrote nothing: what it was given has no numbers"
    ]


def test_an_operation_whose_size_only_numbers_tell_is_refused(fake: Layer) -> None:
    values = torch.randn(3, 3, device="cuda")
    with pytest.raises(Refused) as refused:
        torch.histogram(values, 4)
    assert str(refused.value) == f"precaudit preflight: {answer('an operation whose size hangs on numbers')}"


def test_a_tensor_that_no_machine_holds_is_refused(fake: Layer) -> None:
    with pytest.raises(Refused) as refused:
        torch.empty(1 << 46, device="cuda")
    assert str(refused.value) == f"precaudit preflight: {answer('a tensor of more than 64 TiB')}"


def test_no_numbers_are_measured(run: Callable[..., Report]) -> None:
    """Evidence is never made of numbers that are not there, whatever the run looks like."""
    report = run("gpt.py", "float16")
    assert all(not finding.evidence for finding in report.findings)
    assert not {finding.rule for finding in report.findings} & {"PA105", "PA210", "PA211", "PA213", "PA408", "PA411"}


def arithmetic() -> dict[str, Any]:
    """The shapes and dtypes of a few operations, some of them odd."""
    x = torch.randn(6, 4, device="cuda", dtype=torch.float16)
    low, f = {"device": "cuda", "dtype": torch.float16}, nn.functional
    return {
        "sort": x.sort(),
        "topk": x.topk(2),
        "cumsum": x.cumsum(0),
        "softmax": x.softmax(-1, dtype=torch.float32),
        "conv": f.conv1d(x[None], torch.randn(3, 6, 2, **low)),
        "einsum": torch.einsum("ij,kj->ik", x, x),
        "where": torch.where(x > 0, x, 0.0),
        "cat": torch.cat([x, x.float()]),
        "var": torch.var_mean(x.float(), 0),
        "norm": f.layer_norm(x, (4,)),
        "pad": f.pad(x, (1, 2)),
        "outer": torch.mm(x, x.T, out=torch.empty(0, **low)),
        "gather": x.gather(1, x.argsort(1)),
    }


def test_operations_give_the_sizes_and_dtypes_that_they_give_with_numbers(layer: Layer) -> None:
    def said(made: dict[str, Any]) -> dict[str, Any]:
        return {
            name: [(one.shape, one.dtype, one.device) for one in (value if isinstance(value, tuple) else (value,))]
            for name, value in made.items()
        }

    wanted = said(arithmetic())
    layer.remove()
    without = start({"device": "h100", "fake": True})
    try:
        assert said(arithmetic()) == wanted
    finally:
        without.remove()


SMALL = ("1024", "2", "8", "4", "2048", "4096", "4", "64")
"""Of `llama.py`: width, depth, heads, heads of keys and values, inner width, words, tensor ranks, length."""


def shapes_of(width: int, depth: int, heads: int, pairs: int, inner: int, words: int) -> tuple[int, int]:
    """The elements of a Llama's matrices, and of its norms."""
    attention = 2 * width * width + 2 * width * (width // heads) * pairs
    return 2 * words * width + depth * (attention + 3 * width * inner), (2 * depth + 1) * width


def test_tensor_and_data_ranks_each_hold_their_part(run: Callable[..., Report]) -> None:
    """Matrices are split over all ranks, norms over the data ranks of each tensor rank."""
    size = 256
    report = run("llama.py", *SMALL, size=size, rank=5)
    matrices, norms = shapes_of(*map(int, SMALL[:6]))
    share = 4 * (matrices // size + norms // (size // 4))
    found = bytes_of(report)
    assert found["master_weight", "float32"] == found["gradient", "float32"] == share
    assert found["optimizer_state", "float32"] == 2 * share
    table = held(report)
    assert (table["matmul_compute"], table["forward_weight"]) == (BF16, BF16)
    assert harness.loud(report) == {}
    # Gradients of the norms, which all tensor ranks hold, are summed in bfloat16, whatever reduce_dtype says.
    assert found["gradient_reduction", "float32"] > found["gradient_reduction", "bfloat16"] > 0
    rows = {finding.rule: finding for finding in report.findings}
    assert "PA504" not in rows
    assert (rows["PA501"].severity.value, "DTensor" in rows["PA501"].message) == ("note", True)


def rows_of_rank_0(rows: int, ranks: int) -> int:
    """FSDP2 deals rows out like torch.chunk: the first ranks hold the whole of what is rounded up."""
    return -(-rows // ranks)


@pytest.mark.slow
def test_llama_405b_on_16384_ranks_holds_the_bytes_of_the_arithmetic(run: Callable[..., Report]) -> None:
    """Every width is the 405B model's; 2 of its 126 blocks. Tensor parallel over 8, each of those over 2,048."""
    width, inner, vocabulary, keys = 16384, 53248, 128256, 8 * 128
    report = run("llama.py", *map(str, (width, 2, 128, 8, inner, vocabulary, 8, 8192)), size=16384)
    rows = {rows: rows_of_rank_0(rows // 8, 2048) for rows in (width, inner, vocabulary, keys)}
    by_columns = rows[width] + 2 * rows[keys] + 2 * rows[inner]
    by_rows = 8 * (width // 8 + inner // 8)
    block = by_columns * width + by_rows + 2 * 8
    held_by_rank_0 = 2 * block + 2 * rows[vocabulary] * width + 8
    found = bytes_of(report)
    assert found["master_weight", "float32"] == found["gradient", "float32"] == 4 * held_by_rank_0
    assert found["optimizer_state", "float32"] == 8 * held_by_rank_0
    # In forward a rank has gathered its eighth of each matrix, and the whole of each norm.
    matrices, norms = shapes_of(width, 2, 128, 8, inner, vocabulary)
    assert found["forward_weight", "bfloat16"] == 2 * (matrices // 8 + norms)


def test_all_sums_of_a_tensor_parallel_model_in_bfloat16_are_told(run: Callable[..., Report]) -> None:
    report = run("llama.py", *SMALL, "wrong", size=64)
    assert held(report)["gradient_reduction"] == BF16


def test_what_a_rank_holds_is_said_beside_its_devices_memory(run: Callable[..., Report]) -> None:
    """10.7 billion parameters: 43.0 GB, as much again of gradients, twice that of AdamW's moments."""
    lines = [words.preflight(run("sharded.py", "16384", "4", "65536", size=size)) for size in (1, 8)]
    assert lines[0][1:] == [
        "as on one NVIDIA H100 80GB HBM3",
        "master weights 42.95 GB, gradients 42.95 GB, optimizer state 85.90 GB: 172 GB, more than its 80.00 GB",
    ]
    assert lines[1][1:] == [
        "as one of 8 ranks, each on one NVIDIA H100 80GB HBM3",
        "master weights 5.37 GB, gradients 5.37 GB, optimizer state 10.74 GB: 21.48 GB, 0.27 of its 80.00 GB",
    ]
