"""Every sharding and reduction really runs in two processes; each role's dtype is what inspection of the objects finds.

With and without the trace losses and weights are the same bit by bit. What is wrong reports its rule at the line that
made it so; what is right reports nothing above a note.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pair
import pytest
from recipes import Net

HERE = Path(__file__).resolve().parent
FQNS = [name for name, _ in Net(batch_norm=True).named_parameters()]
PURE = {"PA101", "PA301"}
"""What training bfloat16 parameters without masters reports in every framework."""


class Case(NamedTuple):
    options: Mapping[str, Any]
    loud: frozenset[str] = frozenset()
    """Errors and warnings, all of them."""
    at: str = ""
    """A piece of the source line that at least one of them points at."""
    differs: Mapping[str, set[str]] = {}
    """Roles where the framework's own attributes do not tell what ran, and what ran."""
    named: frozenset[str] = frozenset()
    """What the tensors are called that stand for several parameters."""


def case(
    at: str = "", *rules: str, differs: Mapping[str, set[str]] | None = None, named: Sequence[str] = (), **options: Any
) -> Case:
    return Case(options, frozenset(rules), at, differs or {}, frozenset(named))


WRAPPED = "model = FullyShardedDataParallel("
SHARDED = "fully_shard(block"
BUILT = "deepspeed.initialize("

FAST: dict[str, dict[str, Case]] = {
    "DDP": {
        "ddp plain": case(),
        "ddp fp16_compress_hook": case("register_comm_hook(None", "PA501", hook="fp16_compress_hook"),
        "ddp bucket view, accumulation": case(bucket_view=True, micro_batches=2, batch_norm=True),
        "ddp autocast": case(autocast="bfloat16", static_graph=True),
    },
    "FSDP1": {
        "fsdp1 bfloat16, reduced in float32": case(param="bfloat16", reduce="float32", micro_batches=2),
        "fsdp1 reduce_dtype inherited": case(WRAPPED, "PA501", param="bfloat16", use_orig_params=False),
        "fsdp1 float16 with a plain scaler": case(WRAPPED, "PA502", param="float16", reduce="float32", scaler="plain"),
    },
    "FSDP2": {
        "fsdp2 bfloat16, reduced in float32": case(param="bfloat16", reduce="float32", micro_batches=2),
        "fsdp2 reduce_dtype inherited": case(SHARDED, "PA501", param="bfloat16"),
        "fsdp2 float16 with a plain scaler": case(param="float16", reduce="float32", scaler=True),
        "fsdp2 a weight written while it is gathered": case(param="bfloat16", reduce="float32", write_inside=True),
        # What the ranks of a layer sum is no reduction that reduce_dtype is about: a row, and nothing wrong.
        "tensor_parallel sequence": case(
            param="bfloat16",
            reduce="float32",
            differs={"gradient_reduction": {"bfloat16"}},
        ),
    },
}

SLOW: dict[str, dict[str, Case]] = {
    "DDP": {
        "ddp powerSGD_hook": case(hook="powerSGD_hook"),
        "ddp ZeroRedundancyOptimizer": case(zero=True),
        "ddp compressed, accumulation": case(
            "register_comm_hook(None", "PA501", hook="fp16_compress_hook", bucket_view=True, micro_batches=2
        ),
        "ddp bfloat16 parameters": case(
            "= DistributedDataParallel(", "PA501", "PA208", *PURE, dtype="bfloat16", micro_batches=2
        ),
    },
    "FSDP1": {
        "fsdp1 float32": case(),
        "fsdp1 flat float32": case(use_orig_params=False, micro_batches=2, named=("*", "blocks.0.*", "blocks.1.*")),
        "fsdp1 SHARD_GRAD_OP": case(param="bfloat16", reduce="float32", strategy="SHARD_GRAD_OP"),
        "fsdp1 HYBRID_SHARD": case(param="bfloat16", reduce="float32", strategy="HYBRID_SHARD"),
        "fsdp1 _HYBRID_SHARD_ZERO2": case(WRAPPED, "PA501", param="bfloat16", strategy="_HYBRID_SHARD_ZERO2", copies=2),
        "fsdp1 NO_SHARD, bfloat16 on purpose": case(
            param="bfloat16", reduce="bfloat16", strategy="NO_SHARD", use_orig_params=False
        ),
        "fsdp1 reduced in float16": case(WRAPPED, "PA501", param="float16", reduce="float16", scaler="sharded"),
        "fsdp1 float16, ShardedGradScaler": case(
            param="float16", reduce="float32", scaler="sharded", use_orig_params=False
        ),
        "fsdp1 float16, no scaler": case(WRAPPED, "PA502", "PA201", param="float16", reduce="float32"),
        "fsdp1 no_sync sums low": case(
            WRAPPED, "PA208", param="bfloat16", reduce="float32", micro_batches=3, no_sync=True
        ),
        "fsdp1 batch norm is exempt": case(
            param="bfloat16", reduce="float32", buffer="bfloat16", batch_norm=True, use_orig_params=False
        ),
        "fsdp1 low buffers": case(
            WRAPPED,
            "PA503",
            param="bfloat16",
            reduce="float32",
            buffer="bfloat16",
            batch_norm=True,
            wrap_blocks=False,
            optimizer="SGD",
        ),
        "fsdp1 bfloat16 parameters": case(WRAPPED, "PA208", "PA501", *PURE, dtype="bfloat16", micro_batches=2),
    },
    "FSDP2": {
        "fsdp2 float32": case(),
        "fsdp2 bfloat16 on purpose": case(param="bfloat16", reduce="bfloat16", reshard=False, optimizer="SGD"),
        "fsdp2 no sync sums in float32": case(param="bfloat16", reduce="float32", micro_batches=3, no_sync=True),
        "fsdp2 reduced in float16": case(SHARDED, "PA501", param="float16", reduce="float16", scaler=True),
        "fsdp2 float16, no scaler": case(
            SHARDED,
            "PA502",
            "PA201",
            param="float16",
            reduce="float32",
            differs={"gradient": {"float16", "float32"}},  # the activations' too, which need the scale
        ),
        "fsdp2 bfloat16 parameters": case(SHARDED, "PA208", "PA501", *PURE, dtype="bfloat16", micro_batches=2),
        "tensor_parallel activations alone": case(
            param="bfloat16", reduce="float32", sequence=False, differs={"gradient_reduction": set()}
        ),
        "tensor_parallel alone": case(sharded=False),
    },
}

DEEPSPEED: dict[str, dict[str, Case]] = {
    "stages 0 to 2": {
        "engine 0 float32": case(stage=0),
        "engine 0 bf16": case(BUILT, "PA208", stage=0, precision="bf16"),
        "engine 1 bf16, one micro-batch": case(stage=1, precision="bf16", micro_batches=1),
        "engine 1 bf16": case(BUILT, "PA208", stage=1, precision="bf16"),
        "engine 1 BF16_Optimizer": case(stage=1, precision="bf16", accumulate="fp32"),
        "engine 2 bf16": case(BUILT, "PA208", stage=2, precision="bf16"),
        "engine 2 all float32": case(stage=2, precision="bf16", accumulate="fp32", communicate="fp32"),
        "engine 1 groups": case(BUILT, "PA208", stage=1, precision="bf16", grouped=True, named=("embed.*", "*")),
        "engine 2 groups": case(BUILT, "PA208", stage=2, precision="bf16", grouped=True, named=("embed.*", "*")),
        "engine 2 said to sum low": case(BUILT, "PA208", "PA803", stage=2, precision="bf16", accumulate="bf16"),
    },
    "fp16": {
        "engine 0 fp16": case(BUILT, "PA208", "PA501", stage=0, precision="fp16"),
        "engine 2 fp16": case(BUILT, "PA208", "PA501", stage=2, precision="fp16"),
        "engine 2 fp16, all float32": case(stage=2, precision="fp16", accumulate="fp32", communicate="fp32"),
        "engine 2 fp16, fixed scale": case(
            BUILT, "PA804", stage=2, precision="fp16", accumulate="fp32", communicate="fp32", loss_scale=256
        ),
    },
    "stage 3": {
        "engine 3 bf16": case(BUILT, "PA208", stage=3, precision="bf16"),
        "engine 3 groups": case(BUILT, "PA208", stage=3, precision="bf16", grouped=True, named=("embed.*", "*")),
        "engine 3 all float32": case(stage=3, precision="bf16", accumulate="fp32", communicate="fp32"),
        "engine 3 fp16": case(BUILT, "PA208", "PA501", stage=3, precision="fp16"),
    },
    "torch_autocast": {
        "engine 0 autocast": case(
            stage=0,
            autocast="bfloat16",
            differs={"forward_weight": {"bfloat16", "float32"}},  # norms stay float32
        ),
        "engine 2 autocast": case(
            BUILT,
            "PA504",
            stage=2,
            autocast="bfloat16",
            differs={
                "gradient_reduction": {"bfloat16", "float32"},
                "forward_weight": {"bfloat16", "float32"},
            },
        ),
    },
    "DeepSpeedCPUAdam": {
        "engine 2 CPUAdam": case(
            stage=2, precision="bf16", accumulate="fp32", communicate="fp32", optimizer="DeepSpeedCPUAdam"
        ),
        "engine 3 CPUAdam": case(
            stage=3, precision="bf16", accumulate="fp32", communicate="fp32", optimizer="DeepSpeedCPUAdam"
        ),
        "engine 2 low masters": case(
            BUILT,
            "PA801",
            "PA101",
            "PA208",
            stage=2,
            precision="bf16",
            masters=True,
            optimizer="DeepSpeedCPUAdam",
        ),
        "engine 2 low masters and states": case(
            BUILT,
            "PA801",
            "PA208",
            *PURE,
            stage=2,
            precision="bf16",
            masters=True,
            states=True,
            optimizer="DeepSpeedCPUAdam",
        ),
    },
}


def agree(module: str, cases: Mapping[str, Case]) -> None:
    """Runs one group and holds every part of the promise against every case; all that differs is told at once."""
    ran = pair.run(module, {name: one.options for name, one in cases.items()})
    wrong = [f"{name}: {what}" for name, one in cases.items() for what in _differences(module, one, ran[name])]
    assert not wrong, "\n".join(wrong)


def _differences(module: str, wanted: Case, ran: pair.Ran) -> list[str]:
    out = []
    if ran.plain != ran.traced:
        out.append("losses or weights differ with the trace")
    if ran.report.coverage.traced_steps != [2, 3] or ran.report.coverage.ranks != 2:
        out.append(f"traced {ran.report.coverage.traced_steps} of {ran.report.coverage.ranks} ranks")
    if ran.report.coverage.notes:
        out.append(f"notes: {ran.report.coverage.notes}")
    inspected = {role: set().union(*(rank.get(role, set()) for rank in ran.inspected)) for role in ran.inspected[0]}
    for role, dtypes in {**inspected, **wanted.differs}.items():
        if ran.dtypes(role) != dtypes:
            out.append(f"{role} is {sorted(dtypes)}, reported as {sorted(ran.dtypes(role))}")
    if ran.rules() != wanted.loud:
        out.append(f"wanted {sorted(wanted.loud)}, found {sorted(ran.rules())}")
    lines = (HERE / f"{module}.py").read_text().splitlines()
    flat = module == "deepspeed_recipes" or any(name for name in ran.names if name.endswith("*"))
    strange = [name for name in ran.names if not fnmatch.filter(FQNS, name) and (name or flat)]
    if strange:
        out.append(f"named {strange}")
    if wanted.named and ran.names != wanted.named:
        out.append(f"wanted the names {sorted(wanted.named)}, found {sorted(ran.names)}")
    located = {f.rule: lines[(f.line or 1) - 1].strip() for f in ran.report.findings if f.rule in wanted.loud - PURE}
    if wanted.at and not any(wanted.at in line for line in located.values()):
        out.append(f"nothing points at {wanted.at!r}: {located}")
    return out


@pytest.mark.parametrize("group", FAST)
def test_common_configurations(group: str) -> None:
    agree("recipes", FAST[group])


@pytest.mark.slow
@pytest.mark.parametrize("group", SLOW)
def test_all_configurations(group: str) -> None:
    agree("recipes", SLOW[group])


@pytest.mark.slow
@pytest.mark.parametrize("group", DEEPSPEED)
def test_deepspeed(group: str) -> None:
    agree("deepspeed_recipes", DEEPSPEED[group])


@pytest.mark.slow
def test_steps_that_deepspeed_skips_are_counted() -> None:
    options = {"precision": "fp16", "micro_batches": 1}
    ran = pair.run(
        "deepspeed_recipes",
        {
            "engine 2 first skipped": {"stage": 2, "scale_power": 24, "steps": 16, **options},
            "engine 2 all skipped": {"stage": 2, "scale_power": 60, "steps": 12, **options},
            "engine 3 all skipped": {"stage": 3, "scale_power": 60, "steps": 12, **options},
        },
    )
    for name, one in ran.items():
        assert one.plain == one.traced, name
        cover = one.report.coverage
        if "first" in name:
            assert 0 < cover.skipped_steps < cover.attempts, name
            assert "PA210" not in one.rules(), name
        else:
            assert (cover.skipped_steps, cover.attempts) == (12, 12), name
            finding = one.finding("PA210")
            assert finding.severity.value == "error", name
            assert finding.evidence["loss_scale"] == 2.0**60, name
