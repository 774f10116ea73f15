"""A true QLoRA step in many variants: the right ones stay silent, the wrong ones are named, and no loss changes."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import harness
import pytest
import torch

from precaudit.model.wire import Report, Severity

sys.path.insert(0, str(Path(__file__).parent / "scripts"))

pytestmark = pytest.mark.slow


class Variant(NamedTuple):
    """How it is built, and what a report has to say of it: rule -> what stands on the line it points to."""

    how: dict[str, Any]
    loud: dict[str, str] = {}
    notes: tuple[str, ...] = ()
    compute: str = "bfloat16"


def recast_adapters(model: Any) -> None:
    """As libraries do it behind the user's back: through `.data`, after PEFT had made them float32."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)


BF16 = {"prepare": False, "dtype": torch.bfloat16}
VARIANTS: dict[str, Callable[[], Variant]] = {
    "standard": lambda: Variant({}),
    "paged 8-bit, checkpointing": lambda: Variant({"make": qlora().paged, "double": False, "checkpointing": True}),
    "under autocast": lambda: Variant({"autocast": True}),
    "default compute dtype, under autocast": lambda: Variant({"compute": None, "autocast": True}),
    "bfloat16 storage": lambda: Variant({"bnb_4bit_quant_storage": torch.bfloat16}),
    "default compute dtype": lambda: Variant({"compute": None}, notes=("PA808",), compute="float32"),
    "not prepared": lambda: Variant(BF16, {"PA809": "from_pretrained("}),
    "not prepared, low adapters": lambda: Variant(
        {**BF16, "adapters": False}, {"PA809": "from_pretrained(", "PA301": "torch.optim.AdamW("}
    ),
    "float16 compute": lambda: Variant(
        {"prepare": False, "dtype": torch.float16, "compute": torch.float16},
        {"PA809": "from_pretrained(", "PA808": "BitsAndBytesConfig(", "PA201": "loss.backward()"},
        compute="float16",
    ),
    "recast adapters": lambda: Variant({"change": recast_adapters}, {"PA301": "torch.optim.AdamW("}),
}


def bits(parameter: torch.Tensor) -> torch.Tensor:
    """Codes that are stored as bfloat16 are nan here and there."""
    return parameter.detach().contiguous().flatten().view(torch.uint8)


def qlora() -> Any:
    import qlora

    return qlora


@pytest.fixture(scope="module")
def traced(llama: Path) -> Callable[[str], tuple[Variant, Report, Any, Any]]:
    """Runs a variant twice, without and under the trace, and keeps both."""
    done: dict[str, Any] = {}

    def run(name: str) -> tuple[Variant, Report, Any, Any]:
        if name not in done:
            variant = VARIANTS[name]()
            with harness.unchanged_world():
                torch.set_num_threads(1)
                plain = qlora().run(llama, **variant.how)
            kept: list[Any] = []
            report = harness.trace_call(lambda: kept.append(qlora().run(llama, **variant.how)))
            done[name] = variant, report, plain, kept[0]
        return done[name]

    return run


@pytest.mark.parametrize("name", VARIANTS)
def test_right_variants_are_silent_and_wrong_ones_named_at_their_line(name: str, traced: Any) -> None:
    variant, report, _, _ = traced(name)
    loud = {f.rule: f for f in report.findings if f.severity is not Severity.NOTE}
    assert set(loud) == set(variant.loud), [f.message for f in report.findings]
    assert {f.rule for f in report.findings if f.severity is Severity.NOTE} >= set(variant.notes)
    for rule, text in variant.loud.items():
        line = Path(loud[rule].path).read_text().splitlines()[loud[rule].line - 1]
        assert text in line, f"{rule} points to: {line}"


def test_adapters_recast_behind_the_back_of_peft_are_said_to_be(traced: Any) -> None:
    _, report, _, _ = traced("recast adapters")
    (finding,) = [f for f in report.findings if f.rule == "PA301"]
    assert finding.cause.text == "PEFT made the adapters float32 here; their .data was recast to bfloat16 later"
    assert "get_peft_model(" in Path(finding.cause.path).read_text().splitlines()[finding.cause.line - 1]


@pytest.mark.parametrize("name", VARIANTS)
def test_losses_and_weights_are_bit_identical(name: str, traced: Any) -> None:
    _, _, (model, _, losses), (model_traced, _, losses_traced) = traced(name)
    assert [x.hex() for x in losses] == [x.hex() for x in losses_traced]
    for (key, one), other in zip(model.named_parameters(), model_traced.parameters(), strict=True):
        assert torch.equal(bits(one), bits(other)), key


@pytest.mark.parametrize("name", VARIANTS)
def test_roles_are_what_inspection_finds(name: str, traced: Any) -> None:
    variant, report, _, (model, optimizer, _) = traced(name)
    held = {(row.role, row.dtype): row.tensors for row in report.roles if row.dtype}
    stored = sum(getattr(p, "quant_state", None) is not None for p in model.parameters())
    assert stored == 14
    assert {d: n for (role, d), n in held.items() if role == "quantized_storage"} == {"nf4": stored}
    adapters = Counter(str(p.dtype)[6:] for p in model.parameters() if p.requires_grad)
    assert {d: n for (role, d), n in held.items() if role == "adapter_parameter"} == adapters
    moments = Counter(
        str(t.dtype)[6:]
        for state in optimizer.state.values()
        for key, t in state.items()
        if key in ("exp_avg", "exp_avg_sq") and isinstance(t, torch.Tensor)
    )
    codes = [t for state in optimizer.state.values() for t in state.values() if getattr(t, "dtype", 0) is torch.uint8]
    state = {d: n for (role, d), n in held.items() if role == "optimizer_state"}
    if codes:
        assert state["uint8"] == len(codes)
        assert {row.verdict for row in report.roles if row.role == "optimizer_state"} <= {"allowed", "ok"}
    else:
        assert state == moments
    assert ("master_weight", "float32") not in held
    computed = [f["dtype"] for f in report.facts if f["kind"] == "declared" and f["role"] == "quantized_storage"]
    assert computed == [variant.compute]


def test_compute_dtype_comes_from_the_op_and_not_from_the_layer(llama: Path) -> None:
    """A layer whose setting says bfloat16 and whose matmul runs in float32: both are in the finding."""
    import bitsandbytes

    def lie(layer: Any, inputs: Any) -> None:
        layer.compute_dtype = torch.float32

    def tell(layer: Any, inputs: Any, output: Any) -> None:
        layer.compute_dtype = torch.bfloat16

    def change(model: Any) -> None:
        for layer in model.modules():
            if isinstance(layer, bitsandbytes.nn.Linear4bit):
                layer.register_forward_pre_hook(lie)
                layer.register_forward_hook(tell)

    report = harness.trace_call(lambda: qlora().run(llama, change=change))
    said = [f for f in report.findings if f.rule == "PA504"]
    assert [f.severity for f in said] == [Severity.NOTE]
    assert said[0].message.startswith(
        "matmul compute was declared bfloat16 and ran in float32 (bnb_4bit_compute_dtype)"
    )


def test_a_repacked_weight_is_still_the_same_storage(llama: Path) -> None:
    """As Linear4bit does in eval mode on CPUs with AVX512_BF16: codes reshaped, absmax and quant_state.dtype bfloat16.

    The kernel for the repacked layout needs such a CPU, so the weights are repacked and put back between two steps.
    """
    import bitsandbytes
    from bitsandbytes import functional

    def train() -> None:
        model = qlora().build(llama)
        layers = [m for m in model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

        def repack(*_: Any) -> None:
            for layer in layers:
                state = layer.weight.quant_state
                layer.weight.data, layer.weight.quant_state = functional._convert_weight_packed_for_cpu(
                    layer.weight.data, state
                )

        def unpack(*_: Any) -> None:
            for layer in layers:
                state = layer.weight.quant_state
                layer.weight.data, layer.weight.quant_state = functional._convert_weight_packed_for_cpu_inverse(
                    layer.weight.data, state
                )

        model.train()
        for _ in range(4):
            ids = torch.randint(4, 250, (2, 16))
            model(input_ids=ids, labels=ids).loss.backward()
            repack()
            optimizer.step()
            optimizer.zero_grad()
            unpack()

    report = harness.trace_call(train)
    assert not [f for f in report.findings if f.severity is not Severity.NOTE], report.findings
    assert {r.dtype: r.tensors for r in report.roles if r.role == "quantized_storage"} == {"nf4": 14}
    assert not [note for note in report.coverage.notes if "could not follow" in note]


def test_base_weights_trained_beside_or_instead_of_the_adapters_are_named(llama: Path) -> None:
    """Plain LoRA on a bfloat16 base: a 4-bit base cannot be trained at all, a 16-bit one can by accident."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    def train(change: Callable[[str, torch.Tensor], bool]) -> set[str]:
        def run() -> None:
            model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.bfloat16)
            model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(change(name, parameter))
            qlora().train(model)

        report = harness.trace_call(run)
        return {f.rule for f in report.findings if f.severity is not Severity.NOTE}

    assert train(lambda name, p: "lora" in name) == set()
    assert "PA810" in train(lambda name, p: True)
    assert "PA810" in train(lambda name, p: "lora" not in name)
    assert "PA810" not in train(lambda name, p: "lora" in name or "lm_head" in name)


@pytest.fixture(scope="module")
def torchao_with_nf4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Only torchao 0.15 has NF4Tensor, and PEFT refuses it: it lies beside, for one script alone."""
    beside = tmp_path_factory.mktemp("torchao")
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(beside), "torchao==0.15.0"]
    subprocess.run(install, check=True, capture_output=True, text=True)
    return beside


@pytest.mark.parametrize(("adapters", "rules"), [("float32", set()), ("bfloat16", {"PA301"})])
def test_an_nf4_base_of_torchao_is_quantised_storage(
    adapters: str, rules: set[str], torchao_with_nf4: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from test_shipped_scripts import SCRIPTS, environment, trace

    monkeypatch.setenv("PYTHONPATH", str(torchao_with_nf4))
    words = [str(SCRIPTS / "nf4.py"), *(["low"] if adapters == "bfloat16" else [])]
    plain = subprocess.run(
        [sys.executable, *words], env=environment(tmp_path), capture_output=True, text=True, check=True
    )
    run = trace(tmp_path, "python", *words, options=("--keep-going",))
    assert run.stdout == plain.stdout
    assert run.loud == rules
    assert run.held("quantized_storage") == {"nf4": 2}
    assert run.held("adapter_parameter") == {adapters: 4}
    assert run.held("matmul_compute")["bfloat16"] >= 1
