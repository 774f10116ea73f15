"""Words by case: a float16 finding quotes float16, a hook is told of hooks, and one mistake is not two errors."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from precaudit import judge, rulebook
from precaudit.commands.check import check
from precaudit.model.vocabulary import Fact, Kind, Role, Site
from precaudit.model.wire import Finding, Severity
from precaudit.report.terminal import why

BOOK = rulebook.load()
HEAD = "import torch\nfrom torch import nn\nimport torch.nn.functional as F\n"
LOSS = (
    HEAD
    + """model = nn.Linear(4, 4).bfloat16()
loss = F.cross_entropy(model(x), y)
loss.backward()
"""
)


def found(source: str, folder: Path) -> dict[str, Finding]:
    (folder / "train.py").write_text(source)
    shown = CliRunner().invoke(check, [str(folder / "train.py"), "--output-format", "json", "--no-cache"]).stdout
    return {f["rule"]: Finding.model_validate(f) for f in json.loads(shown)["findings"]}


def test_cross_entropy_on_low_logits_is_told_what_to_type_there(tmp_path: Path) -> None:
    findings = found(LOSS, tmp_path)
    assert findings["PA404"].message == "cross_entropy gets bfloat16 logits"
    assert findings["PA404"].fix == "F.cross_entropy(logits.float(), target)"
    assert "torch.softmax" not in findings["PA404"].fix + findings["PA404"].why


def test_a_softmax_by_itself_keeps_the_rules_own_words(tmp_path: Path) -> None:
    source = LOSS.replace("F.cross_entropy(model(x), y)", "F.nll_loss(F.log_softmax(model(x), -1).float(), y)")
    finding = found(source, tmp_path)["PA404"]
    assert finding.fix.startswith(
        "compute it in float32: torch.softmax(x, dim=-1, dtype=torch.float32), log_softmax likewise"
    )
    assert finding.why == ""


def test_a_low_loss_and_the_cross_entropy_that_made_it_are_one_error() -> None:
    site = Site("train.py", 5, 8)
    worse = {"log_prob_error": 0.2}
    made = Fact(
        Kind.HOLDS, "bfloat16", Role.SOFTMAX, site, attrs={"feeds": "loss", "by": "cross_entropy"}, evidence=worse
    )
    loss = Fact(Kind.HOLDS, "bfloat16", Role.LOSS, Site("train.py", 6, 1))
    both = judge.judge([made, loss], BOOK, "trace")
    assert [(f.rule, f.severity) for f in both] == [("PA401", Severity.ERROR), ("PA404", Severity.WARNING)]
    assert both[1].cause is not None
    assert both[1].cause.line == 6
    (alone,) = judge.judge([made], BOOK, "trace")
    assert alone.severity is Severity.ERROR


def test_a_communication_hook_is_told_of_hooks(tmp_path: Path) -> None:
    source = """import torch
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel
model = DistributedDataParallel(torch.nn.Linear(2, 2))
model.register_comm_hook(None, default_hooks.fp16_compress_hook)
model(torch.ones(1, 2)).sum().backward()
"""
    finding = found(source, tmp_path)["PA501"]
    assert finding.message == "a communication hook sends gradients in float16 (fp16_compress_hook)"
    assert finding.fix == "remove fp16_compress_hook, or use bf16_compress_hook, which cannot overflow"
    assert "reduce_dtype" not in finding.fix


def test_tf32_set_twice_is_not_told_of_another_flag(tmp_path: Path) -> None:
    source = "import torch\ntorch.backends.cuda.matmul.allow_tf32 = True\n"
    source += 'torch.backends.cuda.matmul.fp32_precision = "tf32"\n'
    source += "model = torch.nn.Linear(2, 2).half()\nmodel(torch.ones(1, 2).half()).float().sum().backward()\n"
    finding = found(source, tmp_path)["PA709"]
    assert finding.message == "TF32 is switched by the old and by the new API in one program"
    assert "fp16" not in finding.fix + finding.why


QUOTING_BFLOAT16 = [
    r for r in BOOK.rules.values() if re.search("bfloat16", r.why) and not re.search(r"\bfloat16", r.why)
]


@pytest.mark.parametrize("rule", QUOTING_BFLOAT16, ids=lambda rule: rule.id)
def test_a_rule_that_explains_itself_by_bfloat16_has_other_figures_for_float16(rule: object) -> None:
    known = BOOK.find(rule.id)  # type: ignore[attr-defined]
    if known.forbid is None or "float16" not in rulebook.dtypes(known.forbid):
        return
    role = known.role[0] if isinstance(known.role, list) else known.role
    attrs = {key: value[0] if isinstance(value, list) else value for key, value in known.when.items()}
    case = judge.case_of(known, Fact(known.fact, "float16", role, attrs=attrs))
    assert case is not None, f"{known.id} quotes bfloat16 at a float16 finding"
    assert re.search(r"\bfloat16", case.why)
    assert "bfloat16" not in case.why


@pytest.mark.parametrize("rule", ["PA101", "PA103", "PA208", "PA301", "PA304", "PA401", "PA501"])
def test_a_float16_finding_quotes_float16(rule: str) -> None:
    known = BOOK.find(rule)
    role = known.role[0] if isinstance(known.role, list) else known.role
    attrs = {key: value[0] if isinstance(value, list) else value for key, value in known.when.items()}
    (finding,) = (
        f for f in judge.judge([Fact(known.fact, "float16", role, attrs=attrs)], BOOK, "trace") if f.rule == rule
    )
    assert "bfloat16" not in why(finding)
    assert re.search(r"\bfloat16", why(finding))
