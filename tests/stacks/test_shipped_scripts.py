"""Scripts that come inside wheels, unmodified and started as their users start them; verdicts beside inspection."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from precaudit.model.wire import Report, Severity

pytestmark = pytest.mark.slow

SCRIPTS = Path(__file__).parent / "scripts"


class Traced(NamedTuple):
    code: int
    stdout: str
    stderr: str
    report: Report

    @property
    def loud(self) -> set[str]:
        return {f.rule for f in self.report.findings if f.severity is not Severity.NOTE}

    def held(self, role: str) -> dict[str, int]:
        return {row.dtype: row.tensors for row in self.report.roles if row.role == role and row.dtype}


def environment(folder: Path) -> dict[str, str]:
    scripts = str(Path(sys.executable).parent)
    return {
        **os.environ,
        "HOME": str(folder),
        "HF_HOME": str(folder / "hub"),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PATH": scripts + os.pathsep + os.environ["PATH"],
    }


def trace(folder: Path, *command: str, options: tuple[str, ...] = ()) -> Traced:
    output = folder / "report.json"
    words = [sys.executable, "-m", "precaudit", "trace", "-v", "--output", str(output), *options, *command]
    done = subprocess.run(
        words, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=600, check=False
    )
    assert output.exists(), done.stderr[-3000:]
    return Traced(done.returncode, done.stdout, done.stderr, Report.model_validate_json(output.read_text()))


def shipped(module: str) -> str:
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return spec.origin


# -- Accelerate's own tests of itself


@pytest.mark.parametrize("name", ["test_script", "test_sync"])
def test_accelerates_own_scripts_run_to_their_end(name: str, tmp_path: Path) -> None:
    """They check their own results; under --keep-going they pass, and what trained was float32 throughout."""
    path = shipped(f"accelerate.test_utils.scripts.{name}")
    run = trace(tmp_path, "python", path, options=("--keep-going",))
    assert run.code == 0, run.stderr[-2000:]
    assert run.report.status == "clean"
    assert run.loud == set()
    assert run.held("master_weight").keys() == {"float32"}
    assert run.held("loss").keys() == {"float32"}
    assert run.report.coverage.steps >= 2
    assert not [note for note in run.report.coverage.notes if "could not follow" in note]


# -- TRL from the command line

SETTINGS = "--max_steps 4 --logging_steps 1 --per_device_train_batch_size 2 --max_length 32 --report_to none --use_cpu"
LORA = ("--use_peft", "--lora_r", "4", "--lora_target_modules", "q_proj", "v_proj")


def sft(llama: Path, corpus: Path, *more: str) -> list[str]:
    model = ["--model_name_or_path", str(llama.with_name("bfloat16")), "--dataset_name", str(corpus)]
    return [*model, *SETTINGS.split(), "--save_strategy", "no", "--output_dir", "out", *more]


def losses(text: str) -> list[str]:
    return re.findall(r"'loss': '?([\d.e+-]+)", text)


WAYS: dict[str, tuple[str, ...]] = {"full": (), "LoRA": LORA, "4-bit": (*LORA, "--load_in_4bit")}


@pytest.fixture(scope="module")
def inspected(llama: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What the same three trainings hold without precaudit, looked at when they have ended."""
    folder = tmp_path_factory.mktemp("inspected")
    commands = [word for more in WAYS.values() for word in (*sft(llama, corpus, *more), "--")][:-1]
    words = [sys.executable, str(SCRIPTS / "inspect_run.py"), "trl.scripts.sft", *commands]
    done = subprocess.run(
        words, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(WAYS, map(json.loads, done.stdout.splitlines()[-len(WAYS) :]), strict=True))


@pytest.mark.parametrize(("way", "rules"), [("full", set()), ("LoRA", set()), ("4-bit", {"PA301"})])
def test_trl_sft(
    way: str, rules: set[str], inspected: dict[str, Any], llama: Path, corpus: Path, tmp_path: Path
) -> None:
    seen, more = inspected[way], WAYS[way]
    run = trace(tmp_path, "trl", "sft", *sft(llama, corpus, *more), options=("--keep-going",))
    assert run.loud == rules, [f.message for f in run.report.findings]
    role = "adapter_parameter" if more else "master_weight"
    assert run.held(role) == seen["trained"]
    assert run.held("optimizer_state") == seen["state"]
    assert run.held("quantized_storage") == ({"nf4": seen["quantised"]} if seen["quantised"] else {})
    assert len(losses(seen["stdout"])) == 4
    assert losses(run.stdout) == losses(seen["stdout"])
    for finding in run.report.findings:
        assert finding.path is None or finding.path.endswith("trl/scripts/sft.py")
        assert finding.library.startswith(("transformers/", "accelerate/", "trl/"))
    if rules:
        (finding,) = [f for f in run.report.findings if f.rule == "PA301"]
        assert finding.cause is not None
        assert finding.cause.text.endswith("their .data was recast to bfloat16 later")
        assert "TRL undoes it over a quantised base" in finding.fix


def both(folder: Path, *words: str) -> Traced:
    """Runs this Python command without the trace and with it: the numbers it prints are the same."""
    plain = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment(folder), capture_output=True, text=True, check=False
    )
    assert plain.returncode == 0, plain.stderr[-3000:]
    run = trace(folder, "python", *words, options=("--keep-going",))
    numbers = re.compile(r"'(loss|grad_norm|kl|entropy|rewards/\w+)': '([^']+)'")
    assert len(losses(plain.stdout)) == 4
    assert numbers.findall(run.stdout) == numbers.findall(plain.stdout)
    assert not [note for note in run.report.coverage.notes if "could not follow" in note]
    return run


def jsonl(folder: Path, *keys: str) -> Path:
    (folder / "data").mkdir()
    rows = [json.dumps({key: f"{key} {i}" for key in keys}) for i in range(16)]
    (folder / "data" / "train.jsonl").write_text("\n".join(rows) + "\n")
    return folder / "data"


def test_trl_dpo_in_bfloat16_throughout(llama: Path, tmp_path: Path) -> None:
    data = jsonl(tmp_path, "prompt", "chosen", "rejected")
    run = both(tmp_path, shipped("trl.scripts.dpo"), *sft(llama, data, "--dtype", "bfloat16"))
    assert run.loud == {"PA101", "PA301"}
    assert run.held("master_weight") == {"bfloat16": 21}
    assert all("--dtype float32" in f.fix for f in run.report.findings if f.rule in run.loud)
    assert "\n    trl/scripts/dpo.py:" in run.stderr


def test_trl_rloo_over_four_bits(llama: Path, tmp_path: Path) -> None:
    """Autocast casts inside the one op in which bitsandbytes de-quantises and multiplies."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    reward = tmp_path / "reward"
    AutoModelForSequenceClassification.from_pretrained(llama, num_labels=1).save_pretrained(reward)
    AutoTokenizer.from_pretrained(llama).save_pretrained(reward)
    words = sft(llama, jsonl(tmp_path, "prompt"), *LORA, "--load_in_4bit", "--reward_model_name_or_path", str(reward))
    place = words.index("--max_length")
    words[place : place + 2] = ["--max_completion_length", "8", "--num_generations", "2"]
    run = both(tmp_path, shipped("trl.scripts.rloo"), *words)
    assert run.loud == {"PA301"}
    assert run.held("quantized_storage") == {"nf4": 14}


def test_the_report_of_a_trainer_tells_a_new_user_what_to_write(llama: Path, tmp_path: Path) -> None:
    """The terminal's text: the user's own lines, the library's line below, the fix in Trainer's words."""
    script = tmp_path / "finetune.py"
    source = (SCRIPTS / "trainer.py").read_text()
    script.write_text(f"{source}\n\nrun({str(llama.with_name('bfloat16'))!r}, 'out', bf16=True)\n")
    run = trace(tmp_path, "python", "finetune.py")
    text = " ".join(run.stderr.split())
    assert run.code == 1
    assert "Trainer, Accelerate, Transformers" in text
    assert "inside transformers/trainer.py:" in text
    assert "cause from_pretrained kept the checkpoint's own dtype, bfloat16: finetune.py:" in text
    assert (
        "fix load in float32, from_pretrained(..., dtype=torch.float32), and let Trainer cast: "
        "TrainingArguments(bf16=True)"
    ) in text
