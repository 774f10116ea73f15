"""Trainer, Lightning, Fabric and Accelerate: what they declare, what they do, and the names that users know."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import harness
import pytest
import torch

from precaudit import judge, rulebook
from precaudit.model.vocabulary import fact_from_json
from precaudit.model.wire import Report, Severity

sys.path.insert(0, str(Path(__file__).parent / "scripts"))

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps its precision for the whole process."""
    from accelerate.state import AcceleratorState, GradientState

    def reset() -> None:
        AcceleratorState._reset_state(True)
        GradientState._reset_state()
        os.environ.pop("ACCELERATE_MIXED_PRECISION", None)

    reset()
    yield
    reset()


class Run(NamedTuple):
    report: Report
    model: Any
    optimizer: Any
    names: dict[str, str]
    """Each trained parameter by the user's name -> by ours."""

    @property
    def loud(self) -> set[str]:
        return {f.rule for f in self.report.findings if f.severity is not Severity.NOTE}

    def held(self, role: str) -> dict[str, int]:
        return {row.dtype: row.tensors for row in self.report.roles if row.role == role and row.dtype}

    def said(self, rule: str) -> list[Any]:
        return [f for f in self.report.findings if f.rule == rule]


@pytest.fixture
def both(fresh_accelerate: None) -> Callable[[Callable[[], Any]], Run]:
    """Trains without the trace, then with it, and compares every loss and every weight bit by bit."""
    from precaudit.runtime import session as runtime
    from precaudit.runtime.trackers.modules import Modules

    def run(train: Callable[[], Any]) -> Run:
        with harness.unchanged_world():
            torch.set_num_threads(1)
            torch.manual_seed(0)
            plain, _, losses = train()
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(True)
        GradientState._reset_state()
        with harness.unchanged_world():
            torch.set_num_threads(1)
            torch.manual_seed(0)
            session = runtime.start({**harness.SETTINGS, "cwd": os.getcwd()})
            harness.keep_modules(session)
            try:
                model, optimizer, losses_traced = train()
                held = {id(p) for group in optimizer.param_groups for p in group["params"]}
                names = {n: session.parts.get(Modules).name(p) for n, p in model.named_parameters() if id(p) in held}
                report = harness.judged(session.rank_file.content())
            finally:
                session.remove()
        assert losses
        assert repr(losses) == repr(losses_traced)
        for (name, one), other in zip(plain.named_parameters(), model.parameters(), strict=True):
            assert torch.equal(one, other), name
        return Run(report, model, optimizer, names)

    return run


def inspected(run: Run) -> tuple[Counter[str], Counter[str]]:
    """The dtypes of what the optimizer trains and of what it keeps, by looking."""
    trained = Counter(str(p.dtype)[6:] for group in run.optimizer.param_groups for p in group["params"])
    kept = Counter(str(t.dtype)[6:] for s in run.optimizer.state.values() for t in s.values() if getattr(t, "ndim", 0))
    return trained, kept


def words(run: Run, rule: str) -> str:
    """The fix as `precaudit trace` words it for the frameworks it met."""
    frameworks = run.report.coverage.setup["frameworks"].lower().split(", ")
    facts = [fact_from_json(fact) for fact in run.report.facts]
    return next(f.fix for f in judge.judge(facts, rulebook.load(), "trace", frameworks) if f.rule == rule)


# -- the Hugging Face Trainer


def test_a_bfloat16_checkpoint_under_trainer_bf16_has_no_master_weights(both: Any, llama: Path, tmp_path: Path) -> None:
    import trainer

    run = both(lambda: trainer.run(llama.with_name("bfloat16"), tmp_path, bf16=True))
    assert run.loud == {"PA101", "PA301"}
    assert (run.held("master_weight"), run.held("optimizer_state")) == inspected(run)
    (finding,) = run.said("PA101")
    assert finding.cause.text == "from_pretrained kept the checkpoint's own dtype, bfloat16"
    line = Path(finding.cause.path).read_text().splitlines()[finding.cause.line - 1]
    assert "AutoModelForCausalLM.from_pretrained" in line
    assert finding.library.startswith("transformers/trainer.py:")
    assert "dtype=torch.float32" in words(run, "PA101")
    assert "TrainingArguments(bf16=True)" in words(run, "PA101")


@pytest.mark.parametrize("optim", ["adamw_8bit", "lion_32bit"])
def test_an_optimizer_of_bitsandbytes_keeps_no_master_either(
    optim: str, both: Any, llama: Path, tmp_path: Path
) -> None:
    import trainer

    run = both(lambda: trainer.run(llama.with_name("bfloat16"), tmp_path, bf16=True, optim=optim))
    assert run.loud == {"PA101"}
    assert run.held("master_weight") == inspected(run)[0] == {"bfloat16": 21}


def test_trainer_bf16_on_float32_parameters_is_clean(both: Any, llama: Path, tmp_path: Path) -> None:
    import trainer

    run = both(
        lambda: trainer.run(
            llama.with_name("bfloat16"), tmp_path, dtype=torch.float32, bf16=True, gradient_accumulation_steps=2
        )
    )
    assert run.loud == set()
    assert (run.held("master_weight"), run.held("optimizer_state")) == inspected(run)
    assert run.held("gradient_accumulation") == {"float32": 21}
    assert run.held("matmul_compute").keys() >= {"bfloat16"}
    assert not run.said("PA504")
    assert run.names == {name: name for name in run.names}


def test_trainer_fp16_on_a_cpu_is_said_once_to_be_float32(both: Any, llama: Path, tmp_path: Path) -> None:
    import trainer

    run = both(lambda: trainer.run(llama, tmp_path, fp16=True))
    assert run.loud == set()
    (finding,) = run.said("PA504")
    assert finding.severity is Severity.NOTE
    assert finding.message == "matmul compute was declared float16 and ran in float32: this run was on the CPU"
    assert finding.cause.text == "float16 was declared by TrainingArguments(fp16=True)"
    assert "TrainingArguments(" in Path(finding.path).read_text().splitlines()[finding.line - 1]


def test_trainer_fp16_with_a_float16_model_is_named(both: Any, llama: Path, tmp_path: Path) -> None:
    import trainer

    run = both(lambda: trainer.run(llama, tmp_path, dtype=torch.float16, fp16=True))
    assert {"PA101", "PA201", "PA301", "PA806"} <= run.loud


def test_peft_under_trainer_has_the_names_that_the_user_sees(both: Any, llama: Path, tmp_path: Path) -> None:
    import trainer
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    run = both(
        lambda: trainer.run(
            llama.with_name("bfloat16"), tmp_path, wrap=lambda model: get_peft_model(model, lora), bf16=True
        )
    )
    assert run.loud == set()
    assert run.held("adapter_parameter") == {"float32": 8}
    assert len(run.names) == 8
    assert run.names == {name: name for name in run.names}


# -- Lightning and Fabric


@pytest.mark.parametrize(("maker", "word"), [("lightning", "Trainer"), ("fabric", "Fabric")])
def test_16_mixed_on_a_cpu_is_said_once_to_be_bfloat16(both: Any, tmp_path: Path, maker: str, word: str) -> None:
    import loops

    run = both(lambda: getattr(loops, maker)("16-mixed", tmp_path))
    assert run.loud == set()
    (finding,) = run.said("PA504")
    assert finding.severity is Severity.NOTE
    assert finding.message == "matmul compute was declared float16 and ran in bfloat16: this run was on the CPU"
    assert finding.cause.text == f'float16 was declared by {word}(precision="16-mixed")'
    assert f"L.{word}(" in Path(finding.path).read_text().splitlines()[finding.line - 1]


@pytest.mark.parametrize("maker", ["lightning", "fabric"])
def test_bf16_mixed_is_clean_and_keeps_the_names(both: Any, tmp_path: Path, maker: str) -> None:
    import loops

    run = both(lambda: getattr(loops, maker)("bf16-mixed", tmp_path))
    assert run.loud == set()
    assert not run.said("PA504")
    assert (run.held("master_weight"), run.held("optimizer_state")) == inspected(run)
    assert run.names
    assert run.names == {name: name for name in run.names}


@pytest.mark.parametrize(("maker", "word"), [("lightning", "Trainer"), ("fabric", "Fabric")])
def test_bf16_true_is_the_cause_of_low_master_weights(both: Any, tmp_path: Path, maker: str, word: str) -> None:
    import loops

    run = both(lambda: getattr(loops, maker)("bf16-true", tmp_path))
    assert {"PA101", "PA301", "PA402", "PA807"} <= run.loud
    (finding,) = run.said("PA101")
    assert finding.cause.text == f'{word}(precision="bf16-true") casts the parameters'
    (own,) = run.said("PA807")
    assert (own.path, own.line) == (finding.cause.path, finding.cause.line)
    assert f'{word}(precision="bf16-mixed")' in words(run, "PA101")


@pytest.mark.parametrize(("precision", "dtype"), [("bf16-mixed", "float32"), ("bf16-true", "bfloat16")])
def test_the_sums_of_accumulate_grad_batches_are_seen(both: Any, tmp_path: Path, precision: str, dtype: str) -> None:
    import loops

    run = both(lambda: loops.lightning(precision, tmp_path, accumulate_grad_batches=2))
    assert run.held("gradient_accumulation") == {dtype: len(run.names)}
    assert ("PA208" in run.loud) == (dtype == "bfloat16")


def test_lightning_in_two_processes(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(Path(__file__).parent / 'scripts')!r})\nimport loops\n"
        "model, _, losses = loops.lightning('bf16-mixed', '.', devices=2, strategy='ddp', gradient_clip_val=1.0)\n"
        # In one write: what two unbuffered ranks print in pieces may come mixed.
        "sys.stdout.write(f'{losses} {[p.double().sum().item() for p in model.parameters()]}\\n')\n"
    )

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *words, str(script)]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(harness.FIXTURES.parent)}
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)

    plain, traced = run(), run("-m", "precaudit", "trace", "--keep-going")
    assert plain.returncode == traced.returncode == 0, traced.stderr
    assert sorted(plain.stdout.splitlines()) == sorted(traced.stdout.splitlines()) != []
    report = Report.model_validate_json((tmp_path / ".precaudit" / "latest" / "report.json").read_bytes())
    held = {row.role: row.dtype for row in report.roles if row.dtype}
    assert (held["gradient_reduction"], held["master_weight"], report.coverage.ranks) == ("float32", "float32", 2)
    assert report.findings == [f for f in report.findings if f.severity is Severity.NOTE]
    assert run("-m", "precaudit", "trace").returncode == 0


# -- Accelerate


def test_accelerate_fp16_on_a_cpu_is_said_once_to_be_float32(both: Any, tmp_path: Path) -> None:
    import loops

    run = both(lambda: loops.accelerate("fp16", tmp_path))
    assert run.loud == set()
    (finding,) = run.said("PA504")
    assert finding.message == "matmul compute was declared float16 and ran in float32: this run was on the CPU"
    assert finding.cause.text == "float16 was declared by Accelerator(mixed_precision='fp16')"
    assert "Accelerator(" in Path(finding.path).read_text().splitlines()[finding.line - 1]


def test_an_accelerate_loop_in_bf16_is_clean(both: Any, tmp_path: Path) -> None:
    import loops

    run = both(lambda: loops.accelerate("bf16", tmp_path))
    assert run.loud == set()
    assert not run.said("PA504")
    assert (run.held("master_weight"), run.held("optimizer_state")) == inspected(run)
    assert run.names == {name: name for name in run.names}


def test_a_low_model_in_an_accelerate_loop_is_mended_in_its_words(both: Any, tmp_path: Path) -> None:
    import loops

    run = both(lambda: loops.accelerate("bf16", tmp_path, low=True))
    assert {"PA101", "PA301"} <= run.loud
    assert "Accelerator(mixed_precision='bf16')" in words(run, "PA101")
