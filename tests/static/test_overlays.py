"""A library is one file: an overlay is found where it stands, and what it says of calls and methods is used."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from precaudit import rulebook
from precaudit.judge import judge
from precaudit.model.vocabulary import Fact, Kind
from precaudit.static import overlays
from precaudit.static.analyze import analyze
from precaudit.static.source import Source

OVERLAY = '''
"""tinytrain: a trainer that casts the model, and builds torch's AdamW on it."""

from precaudit.static.language.values import Context, DType, Instance, Opaque, Ref, unknown
from precaudit.static.overlays.torch import modules, optimizers


def trainer(run, name, args, kwargs, node):
    return Instance(Ref("tinytrain.Trainer"), {"\\0low": "bfloat16"})


def method(run, receiver, name, args, kwargs, node):
    if name == "fit":
        modules.cast_module(run, args[0], DType(frozenset({receiver.store["\\0low"]})), node)
        for _, param in modules.parameters(run, args[0]):
            optimizers.optimizer(run, "torch.optim.AdamW", [param], {}, node)
    return unknown()


def context(cls, function):
    return Context("no_grad") if function.node.name.value == "score" else None


CALLS = {"tinytrain.Trainer": trainer}
METHODS = {"tinytrain.Trainer": method}
'''

SCRIPT = """
import tinytrain
import torch

model = torch.nn.Linear(4, 4)
trainer = tinytrain.Trainer()
trainer.fit(model)
torch.float16
"""


@pytest.fixture
def another_overlay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "tinytrain.py").write_text(OVERLAY)
    monkeypatch.setattr(overlays, "__path__", [*overlays.__path__, str(tmp_path)])
    overlays.forget()
    yield
    overlays.forget()
    sys.modules.pop("precaudit.static.overlays.tinytrain", None)


def low_parameters() -> list[Fact]:
    facts, _ = analyze(Source("script.py", SCRIPT, whole=True))
    return [fact for fact in facts if fact.kind is Kind.HOLDS]


def test_an_overlay_in_a_folder_of_its_own_is_asked(another_overlay: None) -> None:
    assert {(f.site.line if f.site else 0, f.dtype) for f in low_parameters()} == {(7, "bfloat16")}


def test_without_it_the_library_is_not_known() -> None:
    assert low_parameters() == []


def test_the_narrowest_row_of_all_overlays_counts() -> None:
    names = ["torch.optim.AdamW", "torch.optim.swa_utils.AveragedModel", "tensorly.nobody_knows", "numpy.zeros"]
    assert [overlays.meaning(name).__name__ for name in names] == [
        "optimizer",
        "averaged_model",
        "unfamiliar",
        "harmless",
    ]


@pytest.mark.parametrize(
    ("built_with", "says"),
    [
        ("from transformers import Trainer as T\nT(model=model, args=args)", "TrainingArguments(bf16=True)"),
        ("from trl import SFTTrainer as T\nT(model=model, args=args)", "which is TRL's default"),
        ("from accelerate import Accelerator\nopt = Accelerator().prepare(optimizer(model))", "let Accelerate cast"),
        ("from lightning.fabric import Fabric\nm, opt = Fabric().setup(model, optimizer(model))", "let Fabric cast"),
        ("from torch.distributed.fsdp import fully_shard\nopt = optimizer(fully_shard(model))", "let FSDP cast"),
        ("opt = optimizer(model)", "from_pretrained(..., dtype=torch.float32)"),
    ],
)
def test_a_fix_is_in_the_words_of_the_framework_that_trains(built_with: str, says: str) -> None:
    script = f"""
import torch
from torch.optim import AdamW
from transformers import AutoModel, TrainingArguments

model = AutoModel.from_pretrained("m", dtype=torch.bfloat16)
args = TrainingArguments("o")


def optimizer(model):
    return AdamW(model.parameters())


{built_with}
"""
    facts, _ = analyze(Source("script.py", script, whole=True))
    fixes = {f.rule: f.fix for f in judge(facts, rulebook.load(), "check")}
    assert says in fixes["PA101"]
