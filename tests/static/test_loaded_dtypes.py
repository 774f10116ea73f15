"""The dtype of a model that from_pretrained is told none of: its config's where it is here, else by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from precaudit import rulebook
from precaudit.judge import judge
from precaudit.model.vocabulary import fact_from_json
from precaudit.static.files.cache import Cache
from precaudit.static.files.discovery import Excluder, discover
from precaudit.static.files.run import examine_all
from precaudit.static.overlays import checkpoints

SCRIPT = """
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

model = AutoModelForCausalLM.from_pretrained("{name}")
args = TrainingArguments(output_dir="out", bf16=True)
Trainer(model=model, args=args, train_dataset=data).train()
"""


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what a project pins says which transformers it runs."""
    monkeypatch.setattr(checkpoints, "_installed", lambda: ())


def severity(root: Path, name: str, pinned: str = "transformers==5.1.0", config: object = None) -> str:
    """How PA101 is graded on a Trainer over this checkpoint; empty where it is silent."""
    (root / "train.py").write_text(SCRIPT.format(name=name))
    (root / "requirements.txt").write_text(pinned + "\n")
    if config is not None:
        (root / name).mkdir(parents=True)
        (root / name / "config.json").write_text(json.dumps(config))
    found = discover([str(root / "train.py")], Excluder(root, (), False)).found
    ((_, result),) = examine_all(found, Cache(None), jobs=1)
    facts = [fact_from_json(raw) for raw in result.get("facts", ())]
    return "".join(f.severity.value for f in judge(facts, rulebook.load(), "check") if f.rule == "PA101")


def test_a_checkpoint_in_the_project_says_its_dtype_itself(tmp_path: Path) -> None:
    assert severity(tmp_path, "ckpt/a", config={"torch_dtype": "bfloat16"}) == "warning"
    assert severity(tmp_path, "ckpt/b", config={"dtype": "float16"}) == "warning"
    assert severity(tmp_path, "ckpt/llama", config={"torch_dtype": "float32"}) == ""
    assert severity(tmp_path, "ckpt/c", "torch", config={"dtype": "bfloat16"}) == "note"


def test_a_name_that_nobody_knows_counts_as_low_only_where_the_dtype_is_kept(tmp_path: Path) -> None:
    assert severity(tmp_path, "some-lab/new-model-3b") == "warning"
    assert severity(tmp_path, "some-lab/new-model-3b", "transformers>=5") == "warning"
    assert severity(tmp_path, "some-lab/new-model-3b", "transformers>=4.40") == "note"
    assert severity(tmp_path, "some-lab/new-model-3b", "torch") == "note"
    assert severity(tmp_path, "some-lab/new-model-3b", "transformers==4.57.1") == ""
    assert severity(tmp_path, "some-lab/new-model-3b", "transformers<5") == ""
    assert severity(tmp_path, "google-bert/bert-base-cased") == ""
    assert severity(tmp_path, "./out/checkpoint-100") == ""
