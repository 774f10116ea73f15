"""A training is held to its lock: what it held is written down, the same bytes each time, and drift is told."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import tomllib
from desk import Desk

from precaudit.contracts import lockfile
from precaudit.contracts.between import difference
from precaudit.contracts.drift import compare
from precaudit.contracts.precision import COMPUTED, Precision, script_of
from precaudit.errors import LockError, ReportError
from precaudit.model.exact import ExactLine, ExactStep
from precaudit.model.wire import Report, Run, Tool
from precaudit.runtime.trackers.inventory import EXCEPTIONS, folded

TRAIN = """
import json, sys
import torch
from torch import nn
import layers

torch.manual_seed(0)
depth = int(sys.argv[1]) if len(sys.argv) > 1 else 2
model = layers.Model(depth)
optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
for step in range(6):
    tokens = torch.randint(0, 11, (3 + step % 2, 5))
    with torch.autocast("cpu", torch.bfloat16):
        loss = nn.functional.cross_entropy(model(tokens).float().flatten(0, 1), tokens.flatten())
    loss.backward()
    if step == 2:
        held = {}
        for name, parameter in model.named_parameters():
            held[name] = {"weight": str(parameter.dtype)}
            if parameter.grad is not None:
                held[name]["gradient"] = str(parameter.grad.dtype)
        names = {parameter: name for name, parameter in model.named_parameters()}
        for parameter, state in optimizer.state.items():
            held[names[parameter]] |= {f"AdamW.{slot}": str(value.dtype) for slot, value in state.items()}
        held |= {name: {"buffer": str(buffer.dtype)} for name, buffer in model.named_buffers()}
        with open("inspected.json", "w") as file:
            json.dump(held, file)
    optimizer.step()
    optimizer.zero_grad()
"""

LAYERS = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.qkv = nn.Linear(8, 24)
        self.frozen = nn.Linear(8, 8, dtype=torch.bfloat16).requires_grad_(False)
        self.register_buffer("angles", torch.arange(8.0))

    def forward(self, x):
        q, k, v = (self.qkv(self.norm(x)) + self.angles.repeat(3)).chunk(3, -1)
        scores = q @ k.transpose(-1, -2)
        return x + torch.softmax(scores{upcast}, -1).to(v.dtype) @ v + self.frozen(x.bfloat16()).float()

class Model(nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.blocks = nn.ModuleList(Block() for _ in range(depth))
        self.head = nn.Linear(8, 11)

    def forward(self, tokens):
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)
"""


@pytest.fixture
def training(real_desk: Desk) -> Desk:
    """A training script beside the small library that it uses, in the version that upcasts its softmax."""
    real_desk.write("train.py", TRAIN)
    library(real_desk, upcasts=True)
    return real_desk


def library(desk: Desk, upcasts: bool) -> None:
    """Installs a version of the library; its softmax without an upcast is one that autocast does not see."""
    text = LAYERS.replace("{upcast}", ".float()" if upcasts else "")
    if not upcasts:
        text = text.replace(
            "        scores = q @ k.transpose(-1, -2)\n        return x +",
            "        scores = q @ k.transpose(-1, -2)\n"
            "        with torch.autocast('cpu', enabled=False):\n"
            "            weights = torch.softmax(scores, -1)\n"
            "        return x +",
        ).replace("torch.softmax(scores, -1).to(v.dtype) @ v", "weights @ v")
    desk.write("layers.py", text)


def lock(desk: Desk, *words: str) -> str:
    made = desk.precaudit("lock", *words, "train.py")
    assert made.code == 0, made.stderr
    return (desk.folder / "precision.lock").read_text()


def test_a_lock_has_the_same_bytes_for_the_same_run_and_for_a_deeper_one(
    training: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "1")
    first = lock(training)
    monkeypatch.setenv("PYTHONHASHSEED", "2")
    again = training.precaudit("lock", "train.py", "4")
    assert (training.folder / "precision.lock").read_text() == first
    assert "precision.lock: unchanged" in again.stderr
    raw = tomllib.loads(first)
    assert raw["script"] == "train.py"
    assert raw["roles"]["softmax"] == raw["roles"]["optimizer_state"] == "float32"
    assert raw["setup"]["autocast"] == "bfloat16 on cpu"


def test_the_names_of_a_lock_hold_what_plain_inspection_finds(training: Desk) -> None:
    seen = training.precaudit("trace", "--keep-going", "train.py")
    inspected = json.loads((training.folder / "inspected.json").read_text())
    rows = {row["name"]: row for row in seen.report["inventory"]}
    told: dict[str, Mapping[str, str]] = {}
    for name in inspected:
        pattern = name if name in rows else name.replace("blocks.0.", "blocks.*.").replace("blocks.1.", "blocks.*.")
        told[name] = {what: f"torch.{dtypes[0]}" for what, dtypes in rows[pattern]["dtypes"].items()}
    assert told == inspected
    computed = {name: row["dtypes"] for name, row in rows.items() if not COMPUTED.isdisjoint(row["dtypes"])}
    assert sum(row["tensors"] for name, row in rows.items() if name not in computed) == len(inspected)
    assert computed == {
        "blocks.*": {"matmul_compute": ["bfloat16"], "softmax": ["float32"]},
        "blocks.*.qkv": {"matmul_compute": ["bfloat16"]},
        "blocks.*.frozen": {"matmul_compute": ["bfloat16"]},
        "head": {"matmul_compute": ["bfloat16"]},
    }


def test_a_library_that_stops_to_upcast_breaks_the_lock_and_is_named(training: Desk) -> None:
    lock(training)
    held = training.precaudit("trace", "--locked", "train.py")
    assert (held.code, held.report["drift"]) == (0, [])
    assert "precision.lock: holds" in held.stderr
    library(training, upcasts=False)
    broken = training.precaudit("trace", "--locked", "--fail-on", "never", "train.py")
    assert broken.code == 1
    assert broken.report["drift"] == [
        "softmax was float32, is bfloat16 and float32",
        "blocks.*: softmax was float32, is bfloat16",
    ]
    assert "  blocks.*: softmax was float32, is bfloat16\n" in broken.stderr
    accepted = training.precaudit("trace", "--update-lock", "--fail-on", "never", "train.py")
    assert accepted.code == 0
    assert '-softmax = "float32"\n+softmax = ["bfloat16", "float32"]\n' in accepted.stderr
    assert training.precaudit("trace", "--locked", "--fail-on", "never", "train.py").code == 0


def test_a_lock_of_another_script_is_refused_before_the_run(training: Desk) -> None:
    training.write("precision.lock", 'format = 1\nscript = "other.py"\n')
    refused = training.precaudit("trace", "--locked", "train.py")
    assert refused.code == 2
    assert refused.stderr == (
        "precaudit: precision.lock: is the lock of other.py, and this runs train.py; name the lock of train.py with "
        '--lock, or make one: "precaudit lock --lock FILE train.py"\n'
    )
    assert not (training.folder / "inspected.json").exists()


def test_a_run_that_ends_too_early_makes_no_lock(training: Desk) -> None:
    training.write("train.py", TRAIN.replace("range(6)", "range(1)"))
    made = training.precaudit("lock", "train.py")
    assert made.code == 5
    assert "precision.lock: not written; python train.py: " in made.stderr
    assert not (training.folder / "precision.lock").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, 'no such lock; make it with "precaudit lock"'),
        ("roles = [", 'not TOML: Invalid value (at end of document); make it anew with "precaudit lock"'),
        ("", 'has no format, and this precaudit reads format 1; make it anew with "precaudit lock"'),
        ("format = 2", 'is of format 2, and this precaudit reads format 1; make it anew with "precaudit lock"'),
        (
            "format = 1\nscript = 3",
            'script: must be a string such as "train.py"; make it anew with "precaudit lock"',
        ),
        (
            'format = 1\nscript = "a.py"\nrole = 1',
            "role: no such entry; allowed: declared, format, preflight, roles, script, setup, several_ranks, tensors, "
            "versions; "
            'make it anew with "precaudit lock"',
        ),
        (
            'format = 1\nscript = "a.py"\n[roles]\nloss = 4',
            'roles.loss: must be a dtype such as "float32", or a list of them',
        ),
        (
            'format = 1\nscript = "a.py"\n[[tensors]]\nnames = ["a", "a"]',
            "tensors: a stands there twice; leave one of them",
        ),
        (
            'format = 1\nscript = "a.py"\n[setup]\ndevice = 1',
            'setup: must be a table of strings; make it anew with "precaudit lock"',
        ),
    ],
)
def test_a_file_that_is_no_lock_is_told_in_one_line(tmp_path: Path, text: str | None, says: str) -> None:
    path = tmp_path / "precision.lock"
    if text is not None:
        path.write_text(text)
    with pytest.raises(LockError) as told:
        lockfile.read(path)
    assert str(told.value) == f"{path}: {says}"


def test_a_role_that_does_not_exist_is_told_with_those_that_do(tmp_path: Path) -> None:
    path = tmp_path / "precision.lock"
    path.write_text('format = 1\nscript = "a.py"\n[roles]\nlosses = "float32"')
    with pytest.raises(LockError, match=r"roles\.losses: no such role; allowed: accumulator, activation, "):
        lockfile.read(path)


def test_what_is_written_is_read_back() -> None:
    one = Precision(
        "-m package.train",
        {"device": 'a "quoted" \x7f one'},
        {"torch": "2.13"},
        {"activation": ("bfloat16", "float32"), "loss": ("float32",)},
        {"gradient_reduction": ("float32",)},
        {"blocks.*.norm.weight": {"weight": ("float32",)}, "head": {"weight": ("float32",), "A b.exp": ("int8",)}},
        several_ranks=True,
        preflight=True,
    )
    raw = tomllib.loads(lockfile.write(one))
    assert raw["setup"]["device"] == 'a "quoted" \x7f one'
    assert lockfile._checked(Path("x"), raw) == one


def test_reductions_are_compared_only_between_runs_of_several_ranks() -> None:
    alone = Precision("a.py", roles={"loss": ("float32",)})
    together = Precision("a.py", roles={"loss": ("float32",), "gradient_reduction": ("float16",)}, several_ranks=True)
    for before, after in ((alone, together), (together, alone)):
        found = compare(before, after)
        assert found.changes == ()
        assert found.left_out == ("gradient reduction: one of the runs had a single rank",)
    lowered = Precision("a.py", roles={"loss": ("float32",), "gradient_reduction": ("float32",)}, several_ranks=True)
    assert [str(change) for change in compare(lowered, together).changes] == [
        "gradient reduction was float32, is float16"
    ]


def test_gradients_that_one_rank_keeps_and_several_divide_are_left_out() -> None:
    alone = Precision("a.py", roles={"gradient": ("bfloat16", "float32")})
    together = Precision("a.py", roles={"gradient": ("float32",)}, several_ranks=True)
    for before, after in ((alone, together), (together, alone)):
        found = compare(before, after)
        assert found.changes == ()
        assert found.left_out == (
            "gradient: one of the runs had a single rank, and kept gradients that several divide and free",
        )
    lowered = Precision("a.py", roles={"gradient": ("float16",)}, several_ranks=True)
    assert [str(change) for change in compare(alone, lowered).changes] == [
        "gradient was bfloat16 and float32, is float16"
    ]
    assert [str(change) for change in compare(together, lowered).changes] == ["gradient was float32, is float16"]


def test_a_lock_of_a_device_and_a_preflight_are_compared_in_what_both_can_know() -> None:
    tensors = {"head.weight": {"weight": ("float32",)}}
    roles = {"master_weight": ("float32",), "matmul_compute": ("bfloat16",)}
    device = Precision("a.py", {"device": "cuda", "autocast": "bfloat16 on cuda"}, {}, roles, {}, tensors)
    eager = {**roles, "softmax": ("float32",)}
    preflight = Precision(
        "a.py", {"device": "cpu", "autocast": "bfloat16 on cuda"}, {}, eager, {}, tensors, preflight=True
    )
    for before, after in ((device, preflight), (preflight, device)):
        found = compare(before, after)
        assert found.changes == ()
        assert found.left_out == (
            "softmax: only one saw it, and one of the runs was a preflight",
            "device: one of the runs was a preflight",
        )
    low = Precision(
        "a.py", {"autocast": "float16 on cuda"}, {}, {**eager, "master_weight": ("bfloat16",)}, {},
        {"head.weight": {"weight": ("bfloat16",)}}, preflight=True,
    )  # fmt: skip
    assert [str(change) for change in compare(device, low).changes] == [
        "autocast was bfloat16 on cuda, is float16 on cuda",
        "master weight was float32, is bfloat16",
        "head.weight: weight was float32, is bfloat16",
    ]


def test_drift_names_the_tensors_and_what_of_them() -> None:
    low = {"weight": ("bfloat16",), "AdamW.exp_avg": ("bfloat16",)}
    high = {"weight": ("float32",), "AdamW.exp_avg": ("float32",)}
    beside = {"blocks.*": {"softmax": ("float32",)}}  # a module, whose pattern is none of its weights
    before = Precision("a.py", tensors={**beside, "blocks.*.w": high, "head.w": high, "old.w": high})
    after = Precision("a.py", tensors={**beside, "blocks.*.w": high, "blocks.3.w": low, "head.w": low, "new.w": high})
    assert sorted(str(change) for change in compare(before, after).changes) == [
        "blocks.3.w, head.w: AdamW.exp_avg, weight was float32, is bfloat16",
        "new.w is new: weight float32, AdamW.exp_avg float32",
        "old.w was weight float32, AdamW.exp_avg float32, and is no longer there",
    ]


def test_what_a_module_computes_is_compared_where_both_runs_saw_it_compute_that() -> None:
    before = Precision("a.py", tensors={
        "experts.*.up": {"matmul_compute": ("bfloat16",)}, "attn": {"softmax": ("float32",), "buffer": ("float32",)},
    })  # fmt: skip
    after = Precision("a.py", tensors={
        "attn": {"matmul_compute": ("float32",), "softmax": ("bfloat16", "float32"), "buffer": ("float32",)},
    })  # fmt: skip
    assert [str(one) for one in compare(before, after).changes] == [
        "attn: softmax was float32, is bfloat16 and float32"
    ]
    assert [str(one) for one in compare(after, before).changes] == [
        "attn: softmax was bfloat16 and float32, is float32"
    ]


def test_names_are_folded_and_exceptions_stand_apart() -> None:
    held = {f"blocks.{n}.w": {"weight": ("float32",)} for n in range(40)} | {"head.w": {"weight": ("float32",)}}
    held["blocks.7.w"] = {"weight": ("bfloat16",)}
    assert sorted(folded(held)) == [
        ("blocks.*.w", 39, {"weight": ["float32"]}),
        ("blocks.7.w", 1, {"weight": ["bfloat16"]}),
        ("head.w", 1, {"weight": ["float32"]}),
    ]
    for number in range(EXCEPTIONS + 1):
        held[f"blocks.{number}.w"] = {"weight": ("bfloat16",)}
    assert ("blocks.*.w", 40, {"weight": ["bfloat16", "float32"]}) in folded(held)


@pytest.mark.parametrize(
    ("words", "script"),
    [
        (["/usr/bin/python3", "train.py", "--data", "x.py"], "train.py"),
        (["torchrun", "--nproc-per-node", "2", "src/train.py"], "src/train.py"),
        (["python", "-m", "torch.distributed.run", "-m", "package.train"], "-m package.train"),
        (["accelerate", "launch", "--num_processes", "2", "train.py"], "train.py"),
        (["/opt/bin/tune", "run", "full"], "tune"),
    ],
)
def test_the_script_of_a_command_is_found_behind_its_launcher(words: list[str], script: str) -> None:
    assert script_of(words) == script


def test_two_reports_of_one_training_are_compared(training: Desk) -> None:
    training.precaudit("trace", "--output", "before.json", "train.py")
    training.write("train.py", TRAIN.replace("\noptimizer =", "\nmodel.head.bfloat16()\noptimizer ="))
    training.precaudit("trace", "--output", "after.json", "train.py")
    same = training.precaudit("diff", "before.json", "before.json")
    assert (same.code, same.stdout) == (0, "before.json and before.json hold the same\n")
    other = training.precaudit("diff", "before.json", "after.json")
    assert other.code == 1
    assert (
        "head.bias, head.weight: AdamW.exp_avg, AdamW.exp_avg_sq, gradient, weight was float32, is bfloat16\n"
        in other.stdout
    )
    assert "new: error PA101 train.py:" in other.stdout
    raw = json.loads(training.precaudit("diff", "--output-format", "json", "after.json", "before.json").stdout)
    assert {"what": "master weight", "was": "bfloat16 and float32", "now": "float32"} in raw["changes"]
    assert any("PA101" in line for line in raw["went"])


def test_reports_of_two_programs_are_not_compared(training: Desk) -> None:
    training.precaudit("trace", "--output", "one.json", "train.py")
    training.write("other.py", TRAIN)
    training.precaudit("trace", "--output", "two.json", "other.py")
    refused = training.precaudit("diff", "one.json", "two.json")
    assert refused.code == 2
    assert refused.stderr == (
        "precaudit: one.json and two.json are not of one training: one ran train.py, the other other.py; "
        "name two reports of one script\n"
    )
    gone = training.precaudit("diff", "one.json", "three.json")
    assert (gone.code, gone.stderr) == (2, "precaudit: three.json: no such report; name a report that is there\n")


SAVES = """
import sys
import torch
from torch import nn

model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 4)).to(getattr(torch, sys.argv[1]))
optimizer = torch.optim.AdamW(model.parameters())
model(torch.ones(4, 64, dtype=model[0].weight.dtype)).sum().backward()
optimizer.step()
torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, sys.argv[1] + ".pt")
torch.save({"model": nn.Sequential(nn.Conv2d(1, 1, 3)).half().state_dict()}, "image.pt")
torch.save({"net": nn.ModuleDict({"other": nn.Linear(2, 2)}).state_dict()}, "other.pt")
"""


def test_two_checkpoints_are_compared_and_unrelated_ones_refused(real_desk: Desk) -> None:
    real_desk.write("save.py", SAVES)
    for dtype in ("float32", "bfloat16"):
        subprocess.run([sys.executable, "save.py", dtype], cwd=real_desk.folder, check=True)
    found = real_desk.precaudit("diff", "float32.pt", "bfloat16.pt")
    assert found.code == 1, found.stderr
    assert "master weight was float32, is bfloat16\n" in found.stdout
    assert "all 4 names: weight was float32, is bfloat16\n" in found.stdout
    assert "all 4 names: state.exp_avg, state.exp_avg_sq was float32, is bfloat16\n" in found.stdout
    assert "new: error PA602 bfloat16.pt " in found.stdout
    same = real_desk.precaudit("diff", "float32.pt", "float32.pt")
    assert (same.code, same.stdout) == (0, "float32.pt and float32.pt hold the same\n")
    refused = real_desk.precaudit("diff", "float32.pt", "other.pt")
    assert refused.code == 2
    assert refused.stderr == (
        "precaudit: float32.pt and other.pt are not of one training: no tensor of one has the name of any of the "
        "other; name two reports of one script\n"
    )


EXACT = """
import sys
import torch
from torch import nn

torch.manual_seed(0)
low = "--low" in sys.argv
model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
optimizer = torch.optim.SGD(model.parameters(), 1.0 if "--fast" in sys.argv else 0.01)
x, y = torch.randn(32, 16), torch.randint(0, 4, (32,))
for step in range(6):
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        out = model(x)
    loss = nn.functional.cross_entropy(out.float(), y)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
"""


@pytest.mark.slow
def test_values_of_two_exact_runs_differ_where_more_than_their_rounding_does(real_desk: Desk) -> None:
    real_desk.write("train.py", EXACT)
    for name, words in (("one", ()), ("again", ()), ("fast", ("--fast",))):
        real_desk.precaudit("trace", "--exact", "--output", f"{name}.json", "train.py", *words)
    same = real_desk.precaudit("diff", "one.json", "again.json")
    assert (same.code, same.stdout) == (0, "one.json and again.json hold the same\n"), same.stderr
    other = real_desk.precaudit("diff", "one.json", "fast.json")
    assert other.code == 1
    (line,) = [line for line in other.stdout.splitlines() if line.startswith("loss was ")]
    sizes = []
    for name in ("one", "fast"):
        budget = json.loads((real_desk.folder / f"{name}.json").read_text())["exact"]["budget"]
        sizes.append(next(row["size"] for row in budget if row["what"] == "loss"))
    assert line.startswith(f"loss was {sizes[0]:.6g}, is {sizes[1]:.6g}; rounding explains ")


def test_a_value_that_rounding_explains_is_no_difference() -> None:
    def report(size: float, absolute: float, step: int = 2) -> Report:
        line = ExactLine(what="gradient", name="head.weight", size=size, absolute=absolute)
        exact = ExactStep(step=step, followed=1.0, budget=[line])
        return Report(tool=Tool(version="0"), command="trace", status="clean", exact=exact)

    assert difference(report(1.0, 0.01), report(1.015, 0.01)).values == ()
    assert difference(report(1.0, 0.01), report(1.025, 0.01)).values == (
        "gradient of head.weight was 1, is 1.025; rounding explains 0.01 and 0.01 of that",
    )
    assert difference(report(1.0, 0.01), report(1.0, 0.01, step=3)).values == (
        "values were not compared: one followed step 2, the other step 3",
    )


def test_an_audit_and_a_trace_are_not_compared_nor_are_audits_of_two_scripts() -> None:
    def report(command: str, script: str) -> Report:
        started = "2026-01-01T00:00:00+00:00"
        run = Run(id="0", argv=["python", script], cwd="/", started=started, duration_s=1, host="h", python="3.11")
        return Report(tool=Tool(version="0"), command=command, status="clean", run=run)

    for one, other, why in (
        (report("audit", "a.py"), report("audit", "b.py"), "one ran a.py, the other b.py"),
        (report("audit", "a.py"), report("trace", "a.py"), "one is of precaudit audit, the other of precaudit trace"),
    ):
        with pytest.raises(ReportError) as told:
            difference(one, other)
        assert str(told.value) == f"A and B are not of one training: {why}; name two reports of one script"
