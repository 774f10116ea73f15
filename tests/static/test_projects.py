"""A dtype that another module of the same project gives is known where it is used, wherever that module stands."""

from __future__ import annotations

from pathlib import Path

import pytest

from precaudit import rulebook
from precaudit.judge import judge
from precaudit.model.vocabulary import fact_from_json
from precaudit.static.files.cache import Cache
from precaudit.static.files.discovery import Excluder, discover
from precaudit.static.files.run import examine_all

PRECISION = """
import torch

DTYPES = {"low": torch.bfloat16, "full": torch.float32}


def training_dtype(name="low"):
    return DTYPES[name]


def cast(model):
    return model.to(training_dtype())
"""
SCRIPT = """
import torch
from torch import nn
{imports}

model = {model}
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
for batch in [torch.randn(4, 8)] * 8:
    optimizer.zero_grad()
    model(batch.to(next(model.parameters()).dtype)).float().pow(2).mean().backward()
    optimizer.step()
"""
CAST, DTYPE = "cast(nn.Linear(8, 8))", "nn.Linear(8, 8).to(training_dtype())"
LAYOUTS = {
    "beside": ("train.py", "precision.py", {}, "from precision import cast", CAST),
    "in_a_package": ("train.py", "lib/precision.py", {"lib/__init__.py": ""}, "from lib.precision import cast", CAST),
    "without_init": ("train.py", "lib/deep/precision.py", {}, "from lib.deep.precision import training_dtype", DTYPE),
    "module_of_a_package": ("train.py", "lib/precision.py", {}, "from lib import precision", f"precision.{CAST}"),
    "as_another_name": ("train.py", "lib/precision.py", {}, "import lib.precision as p", f"p.{CAST}"),
    "re_exported": (
        "train.py",
        "lib/core/precision.py",
        {
            "lib/__init__.py": "from .core import cast\n",
            "lib/core/__init__.py": "from .precision import (\n cast,\n)\n",
        },
        "from lib import cast",
        CAST,
    ),
    "re_exported_with_all_others": (
        "train.py",
        "lib/precision.py",
        {"lib/__init__.py": "from .precision import *\n"},
        "from lib import cast",
        CAST,
    ),
    "with_all_others": ("train.py", "lib/precision.py", {}, "from lib.precision import *", CAST),
    "two_folders_up": (
        "app/cli/train.py",
        "app/precision.py",
        {"app/__init__.py": "", "app/cli/__init__.py": ""},
        "from ..precision import cast",
        CAST,
    ),
    "from_the_package_above": (
        "app/cli/train.py",
        "app/precision.py",
        {"app/cli/__init__.py": ""},
        "from .. import precision",
        f"precision.{CAST}",
    ),
    "from_the_root": ("scripts/train.py", "lib/precision.py", {}, "from lib.precision import cast", CAST),
    "from_src": ("scripts/train.py", "src/lib/precision.py", {}, "from lib.precision import cast", CAST),
}


def rules_of(root: Path) -> set[tuple[str, str]]:
    found = discover([str(root)], Excluder(root, (), False)).found
    results = examine_all(found, Cache(None), jobs=1)
    facts = [fact_from_json(raw) for _, result in results for raw in result.get("facts", ())]
    return {(finding.rule, Path(finding.path or "").name) for finding in judge(facts, rulebook.load(), "check")}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("low", [True, False])
def test_what_a_module_of_the_project_gives_is_known(layout: str, low: bool, tmp_path: Path) -> None:
    script, module, others, imports, model = LAYOUTS[layout]
    precision = PRECISION if low else PRECISION.replace('name="low"', 'name="full"')
    files = {script: SCRIPT.format(imports=imports, model=model), module: precision, "pyproject.toml": "", **others}
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert {rule for rule, _ in rules_of(tmp_path)} == ({"PA101", "PA301"} if low else set())


def test_a_library_is_known_by_what_it_does_also_in_its_own_repository(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("")
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("from .fake import bfloat16\n")
    (tmp_path / "torch" / "fake.py").write_text("bfloat16 = half = float16 = None\n")
    (tmp_path / "scripts").mkdir()
    script = SCRIPT.format(imports="", model="nn.Linear(8, 8).to(torch.bfloat16)")
    (tmp_path / "scripts" / "train.py").write_text(script)
    assert {rule for rule, _ in rules_of(tmp_path)} == {"PA101", "PA301"}


@pytest.mark.parametrize("low", [True, False])
def test_what_a_module_does_only_when_it_is_run_is_not_done_by_an_import(low: bool, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("")
    sign = "!=" if low else "=="
    lowering = f'if __name__ {sign} "__main__":\n    DTYPES = {{"full": torch.bfloat16}}\n'
    (tmp_path / "precision.py").write_text(PRECISION.replace('name="low"', 'name="full"') + lowering)
    (tmp_path / "train.py").write_text(SCRIPT.format(imports="from precision import cast", model=CAST))
    assert {rule for rule, _ in rules_of(tmp_path)} == ({"PA101", "PA301"} if low else set())


@pytest.mark.parametrize("low", [True, False])
def test_a_module_far_away_makes_a_dtype_of_what_a_config_says(low: bool, tmp_path: Path) -> None:
    config = (
        "import torch\nfrom pydantic import BaseModel\n\n\nclass RunConfig(BaseModel):\n    dtype: str = 'float32'\n"
        "    def torch_dtype(self):\n        return getattr(torch, self.dtype)\n"
    )
    imports = "import json\nfrom lib.config import RunConfig\ncfg = RunConfig(**json.load(open('run.json')))"
    files = {
        "scripts/train.py": SCRIPT.format(imports=imports, model="nn.Linear(8, 8).to(cfg.torch_dtype())"),
        "scripts/run.json": '{"dtype": "bfloat16"}' if low else "{}",
        "lib/__init__.py": "",
        "lib/config.py": config,
        "pyproject.toml": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert {rule for rule, _ in rules_of(tmp_path)} == ({"PA101", "PA301"} if low else set())


TRAINER = """
import torch


class Trainer:
    def __init__(self, model, optimizer):
        self.model, self.optimizer = model, optimizer

    def run(self, batches):
        for batch in batches:
            loss = self.model(batch).float().pow(2).mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
"""
HANDED_ON = """
import torch
from engine import Trainer

model = torch.nn.Linear(8, 8).to(torch.{dtype})
optimizer = torch.optim.AdamW(model.parameters())
Trainer(model, optimizer).run(torch.load("batches.pt"))
"""


@pytest.mark.parametrize(("dtype", "rules"), [("bfloat16", {"PA101", "PA301"}), ("float32", set())])
def test_a_model_is_followed_into_a_module_that_makes_nothing_low(tmp_path: Path, dtype: str, rules: set[str]) -> None:
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "__init__.py").write_text("from .trainer import Trainer\n")
    (tmp_path / "engine" / "trainer.py").write_text(TRAINER)
    (tmp_path / "main.py").write_text(HANDED_ON.format(dtype=dtype))
    assert {rule for rule, _ in rules_of(tmp_path)} == rules
