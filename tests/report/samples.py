"""Reports that resemble real ones: a sharded trace with everything in it, a static check, hostile names."""

from __future__ import annotations

from pathlib import Path

from precaudit import rulebook
from precaudit.model.wire import Coverage, Finding, Line, PartOf, Report, RoleSummary, Severity, Tool

TRAIN = """\
import torch
from torch import nn

from model import GPT, Config


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    model = GPT(Config.from_file(args.config))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    ema = copy.deepcopy(model)
    for step, (x, y) in enumerate(loader):
\tlogits = model(x); größe = "漢字 identifiers are wide"; loss = nn.functional.cross_entropy(logits, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"] if p.requires_grad], max_norm=args.gradient_clipping_threshold_for_the_whole_model, norm_type=2.0, error_if_nonfinite=False)
        optimizer.step()
"""  # noqa: E501
MODEL = "import torch\n" + "\n" * 39 + "    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.bfloat16)\n"
HOSTILE = '</script><img src=x onerror="alert(1)">[bold red]\x1b[31m`|*_#&\u202e'


def write_sources(folder: Path) -> Path:
    (folder / "train.py").write_text(TRAIN, encoding="utf-8")
    (folder / "model.py").write_text(MODEL, encoding="utf-8")
    return folder


def finding(rule: str, line: int | None = 10, column: int | None = 17, **more: object) -> Finding:
    known = rulebook.load().find(rule)
    role = known.role[0] if isinstance(known.role, list) else known.role
    base: dict[str, object] = {
        "rule": rule,
        "name": known.name,
        "severity": known.severity,
        "role": role.value if role else None,
        "message": known.message.replace("{dtype}", "bfloat16"),
        "path": "train.py",
        "line": line,
        "column": column,
        "dtype": "bfloat16",
        "allowed": ["float32", "float64"],
        "fix": known.fix,
        "fingerprint": f"{rule}{line}{column}".ljust(16, "0"),
        "seen_by": ["trace"],
    }
    return Finding.model_validate(base | more)


CAST = Line(text="parameters were bfloat16 when the optimizer was built", path="model.py", line=41, column=5)


def trace() -> Report:
    """A sharded run whose parameters are bfloat16, as in the design: one cause, several consequences, and others."""
    fsdp = rulebook.load().find("PA301").fixes["fsdp2"]
    findings = [
        finding("PA301", end_line=10, end_column=63, count=796, cost_bytes=4_100_000_000, cause=CAST, fix=fsdp,
                message="optimizer state is bfloat16: AdamW exp_avg, exp_avg_sq of 398/398 parameters (8/8 ranks)",
                evidence={"state_frozen": 0.135}, ranks=list(range(8))),
        finding("PA101", severity=Severity.ERROR, end_line=10, end_column=63, cause=CAST, cost_bytes=2_050_000_000,
                message="parameters are updated in bfloat16, with no float32 master copy: 398 of 398", count=398,
                evidence={"updates_lost": 0.961, "applied_update_error": 0.98}, parts=[
                    PartOf(name="layers.*.input_layernorm.weight", tensors=24, evidence={"updates_lost": 1.0}),
                    PartOf(name="norm.weight", tensors=1, evidence={"updates_lost": 1.0}),
                    PartOf(name="layers.*.mlp.up_proj.weight", tensors=24, evidence={"updates_lost": 0.97})]),
        finding("PA208", 14, 9, cause=CAST, evidence={"accumulation_loss": 0.0047}, cost_bytes=2_050_000_000),
        finding("PA401", 13, 58, end_line=13, end_column=97, module="",
                message="the loss is bfloat16: cross_entropy of [torch.bfloat16] logits"),
        finding("PA103", 11, 5, severity=Severity.ERROR, module="ema.layers.*.self_attention.query_key_value.bias",
                evidence={"updates_lost": 0.9877}, message="the weight average is kept in bfloat16: EMA of 398 of 398"),
        finding("PA209", 15, 9, dtype="float16", end_line=15, end_column=204,
                message="the gradient norm is computed in float16", evidence={"inf_share": 0.25}),
        finding("PA404", 13, 12, module="model.layers.*.block_sparse_moe.gate", role="softmax",
                message="softmax in bfloat16 feeds topk: router over 64 experts", evidence={"log_prob_error": 0.0131}),
        finding("PA404", 14, 9, message="softmax in bfloat16 feeds multinomial: sampling of negatives"),
        finding("PA408", 99, 9, message="positions, indices or frequencies do not fit bfloat16: inv_freq of 64"),
        finding("PA411", None, None, path=None, module="vision_tower.encoder.layers.23.mlp.fc2", dtype="float16",
                message="a float16 value comes near 65504, where it becomes inf", evidence={"headroom": 1.19}),
        finding("PA501", 16, 9, severity=Severity.NOTE, message="gradients are reduced between ranks in bfloat16"),
        finding("PA710", 9, 5, severity=Severity.NOTE),
        finding("PA304", 12, 5, suppressed=True),
    ]  # fmt: skip
    held = {
        "master_weight": [("bfloat16", 398, 2_050_000_000, "violation")],
        "optimizer_state": [("bfloat16", 796, 4_100_000_000, "violation")],
        "loss": [("bfloat16", 8, 0, "violation")],
        "norm_running_statistics": [("float32", 145, 12_288, "ok")],
        "softmax": [("float32", 12, 0, "ok"), ("bfloat16", 24, 0, "violation")],
        "gradient_accumulation": [("bfloat16", 398, 2_050_000_000, "violation")],
        "gradient": [("bfloat16", 398, 2_050_000_000, "ok")],
        "forward_weight": [("bfloat16", 398, 0, "ok")],
        "activation": [("float32", 2, 0, "ok"), ("bfloat16", 1187, 11_300_000_000, "ok")],
        "quantized_storage": [("uint8", 28, 940, "ok")],
        "accumulator": [("bfloat16", 398, 2_050_000_000, "violation")],
        "positions": [("bfloat16", 1, 128, "violation")],
    }
    roles = [
        RoleSummary.model_validate({"role": role.value, "dtype": d, "tensors": n, "bytes": b, "verdict": v})
        for role in rulebook.load().roles
        for d, n, b, v in held.get(role.value, [(None, 0, 0, "not-observed")])
    ]
    coverage = Coverage(
        steps=2, ranks=8, micro_batches=8, traced_steps=[2, 3], parameters=398, unattributed_ops=0.012,
        setup={"torch": "2.13", "frameworks": "FSDP2", "autocast": "bfloat16", "optimizer": "AdamW"},
        overhead={"step_s_traced": 0.0341, "step_s_untraced": 0.0176, "start_s": 2.31},
        not_observed={
            "gradient_reduction": "no collective ran inside the window; trace it with torchrun --nproc-per-node 2",
            "checkpointing": "no checkpoint was written in steps 2-3; precaudit checkpoint PATH reads one",
        },
        notes=["this run was on CPU: CUDA's autocast runs softmax in float32"],
    )  # fmt: skip
    return Report(
        tool=Tool(version="0.1.0"), command="trace", status="findings", findings=findings, roles=roles,
        coverage=coverage, facts=[{"kind": "holds", "dtype": "bfloat16"}],
    )  # fmt: skip


def check() -> Report:
    findings = [
        finding("PA301", end_line=10, end_column=63, seen_by=["check"], cause=CAST),
        finding("PA101", end_line=10, end_column=63, seen_by=["check"], cause=CAST),
        finding("PA401", 13, 58, end_line=13, end_column=97, seen_by=["check"]),
        finding("PA202", 15, 9, end_line=15, end_column=204, seen_by=["check"], dtype=""),
        finding("PA710", 9, 5, severity=Severity.NOTE, seen_by=["check"]),
    ]
    return Report(
        tool=Tool(version="0.1.0"), command="check", status="findings", findings=findings,
        coverage=Coverage(files=48, skipped=["legacy/py2.py: not valid Python: Missing parentheses"]),
    )  # fmt: skip


def clean(command: str = "check") -> Report:
    return Report.model_validate(
        {"tool": {"version": "0.1.0"}, "command": command, "status": "clean", "coverage": {"files": 3, "steps": 2}}
    )


def inconclusive() -> Report:
    return Report.model_validate(
        {
            "tool": {"version": "0.1.0"},
            "command": "trace",
            "status": "inconclusive",
            "exit_code": 0,
            "coverage": {"notes": ["the command ended without an optimizer step"]},
        }
    )


def hostile() -> Report:
    found = finding("PA301", 10, 17, path=f"dir {HOSTILE}/a b%.py", message=HOSTILE, module=HOSTILE, fix=HOSTILE,
                    dtype=HOSTILE, cause=Line(text=HOSTILE, path=HOSTILE, line=3), evidence={HOSTILE: 0.5})  # fmt: skip
    coverage = Coverage(
        setup={"torch": HOSTILE, HOSTILE: HOSTILE}, notes=[HOSTILE], skipped=[HOSTILE], not_observed={HOSTILE: HOSTILE}
    )
    rows = [RoleSummary(role=HOSTILE, dtype=HOSTILE, tensors=1, bytes=1, verdict="violation")]
    return Report(
        tool=Tool(version="0.1.0"), command="trace", status="findings", findings=[found], roles=rows, coverage=coverage
    )
