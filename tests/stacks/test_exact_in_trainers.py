"""The exact step of trainings that a library runs, against one step in float64 from the same start."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import harness
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from precaudit.runtime import session as sessions
from precaudit.runtime.events import StepBegan, StepEnded
from precaudit.runtime.exact.step import ExactStep

pytestmark = pytest.mark.slow
NEAR = 1e-9
CLIP = 0.1
MICRO_BATCHES = 2
STEPS = 4


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    yield
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


class Net(nn.Module):
    """An embedding, a norm, a head; gives its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm = nn.Embedding(31, 16), nn.LayerNorm(16)
        self.up, self.head = nn.Linear(16, 32), nn.Linear(32, 31)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.head(F.gelu(self.up(self.norm(self.embedding(x)))))
        logits = logits if logits.dtype is torch.float64 else logits.float()
        return {"loss": F.cross_entropy(logits.flatten(0, 1), labels.flatten())}


def rows() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 31, (64, 9), generator=generator)
    return [{"x": one[:-1], "labels": one[1:]} for one in ids]


def adamw(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(net.parameters(), lr=1e-3)


def transformers_trainer(net: Net, folder: Path) -> None:
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        str(folder), bf16=True, use_cpu=True, max_steps=STEPS, per_device_train_batch_size=4, max_grad_norm=CLIP,
        gradient_accumulation_steps=MICRO_BATCHES, report_to=[], disable_tqdm=True, save_strategy="no",
        logging_strategy="no", lr_scheduler_type="constant", remove_unused_columns=False, learning_rate=1e-3,
    )  # fmt: skip
    Trainer(net, arguments, train_dataset=rows()).train()


def lightning(net: Net, folder: Path) -> None:
    import lightning.pytorch as pl

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def training_step(self, batch: Any, number: int) -> Tensor:
            return self.net(**batch)["loss"]  # type: ignore[no-any-return]

        def configure_optimizers(self) -> Any:
            return adamw(self)

    trainer = pl.Trainer(
        accelerator="cpu", devices=1, precision="bf16-mixed", max_steps=STEPS, gradient_clip_val=CLIP, logger=False,
        accumulate_grad_batches=MICRO_BATCHES, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=str(folder),
    )  # fmt: skip
    trainer.fit(Module(), torch.utils.data.DataLoader(rows(), batch_size=4))  # type: ignore[arg-type]


def accelerate(net: Net, folder: Path) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(mixed_precision="bf16", cpu=True, gradient_accumulation_steps=MICRO_BATCHES)
    model, optimizer, batches = accelerator.prepare(
        net,
        adamw(net),
        torch.utils.data.DataLoader(rows(), batch_size=4),  # type: ignore[arg-type]
    )
    for batch in list(batches)[: STEPS * MICRO_BATCHES]:
        with accelerator.accumulate(model):
            accelerator.backward(model(**batch)["loss"])
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad()


class Quantized(nn.Module):
    """Two 4-bit layers with adapters in float32 beside them."""

    def __init__(self) -> None:
        import bitsandbytes as bnb
        from peft import LoraConfig, get_peft_model

        super().__init__()
        options = {"compute_dtype": torch.bfloat16, "quant_type": "nf4", "compress_statistics": True}
        layers = [bnb.nn.Linear4bit(64, 64, **options) for _ in range(2)]
        base = nn.Sequential(layers[0], nn.Tanh(), layers[1]).to("cpu")
        base.is_loaded_in_4bit = True  # type: ignore[assignment]
        config = LoraConfig(r=4, target_modules=["0", "2"], init_lora_weights=False)
        self.net = get_peft_model(base, config)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"loss": self.net(x).float().square().mean()}


def in_float64(net: Any, x: Tensor) -> Tensor:
    """The same, with the numbers that the 4-bit weights stand for."""
    import bitsandbytes as bnb

    model = net.net.base_model.model
    h = x.double()
    for at in ("0", "2"):
        layer = getattr(model, at)
        base = layer.base_layer
        weight = bnb.functional.dequantize_4bit(base.weight.data, base.weight.quant_state).double()
        adapted = layer.lora_B["default"](layer.lora_A["default"](h)) * layer.scaling["default"]
        h = F.linear(h, weight, base.bias.double()) + adapted
        h = torch.tanh(h) if at == "0" else h
    return h.square().mean()


def qlora(net: Any, folder: Path) -> None:
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-3)
    for number in range(STEPS):
        for micro in range(MICRO_BATCHES):
            x = torch.randn(8, 64, generator=torch.Generator().manual_seed(10 * number + micro))
            (net(x)["loss"] / MICRO_BATCHES).backward()
        nn.utils.clip_grad_norm_([p for p in net.parameters() if p.requires_grad], CLIP)
        optimizer.step()
        optimizer.zero_grad()


class Seen:
    """Of the exact step: how it began, what it was given, what the companions were at its end."""

    def __init__(self, net: nn.Module, train: Callable[[Any, Path], None], folder: Path) -> None:
        self.batches: list[dict[str, Tensor]] = []
        self.start: list[Tensor] = []
        self.state: list[dict[str, Any]] = []
        self.gradients: list[Tensor] = []
        self.weights: list[Tensor] = []
        self.options: dict[str, Any] = {}
        self.net = net
        with harness.unchanged_world():
            torch.set_num_threads(1)
            session = sessions.start({**harness.SETTINGS, "skip": 1, "exact": True, "cwd": "."})
            self.exact = session.parts.get(ExactStep)
            session.bus.on(StepBegan, lambda event: self.began(event.optimizer))
            session.bus.on(StepEnded, lambda event: self.ended(event.optimizer))
            net.register_forward_pre_hook(self.given, with_kwargs=True)
            try:
                train(net, folder)
            finally:
                self.content = self.exact.content(0)
                self.notes = list(session.guard.notes)
                session.remove()

    @property
    def trained(self) -> list[Tensor]:
        return [p for p in self.net.parameters() if p.requires_grad]

    def given(self, module: Any, args: Any, kwargs: Any) -> None:
        if not self.weights:
            self.batches.append({**kwargs, **dict(zip(("x",), args, strict=False))})

    def of(self, tensor: Tensor) -> Tensor:
        entry = self.exact.follower.main.find(tensor)
        assert entry is not None, "has no companion"
        assert not entry.partial, "is partial"
        return entry.view(tensor).clone()

    def began(self, optimizer: Any) -> None:
        if self.exact.following:
            self.start = [p.detach().clone() for p in self.trained]
            state = getattr(optimizer, "optimizer", optimizer).state
            self.state = [{n: v.clone() for n, v in state[p].items()} for p in self.trained]
            options = optimizer.param_groups[0]
            self.options = {name: options[name] for name in ("lr", "betas", "eps", "weight_decay")}

    def ended(self, optimizer: Any) -> None:
        if self.exact.following:
            self.gradients = [self.of(p.grad) for p in self.trained if p.grad is not None]
            self.weights = [self.of(p) for p in self.trained]


@pytest.mark.parametrize(
    ("train", "model"),
    [(transformers_trainer, Net), (lightning, Net), (accelerate, Net), (qlora, Quantized)],
    ids=["transformers", "lightning", "accelerate", "qlora"],
)
def test_companions_are_the_step_in_float64(train: Any, model: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = model()
    plain = copy.deepcopy(net)
    torch.manual_seed(1)
    seen = Seen(net, train, tmp_path)
    assert seen.notes == []
    assert seen.content is not None
    assert (seen.content["followed"], seen.content["not_followed"]) == (1.0, {})
    torch.manual_seed(1)
    train(plain, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), plain.parameters(), strict=True))

    trained = seen.trained
    for p, first in zip(trained, seen.start, strict=True):
        p.data, p.grad = first.double(), None
    for batch in seen.batches[-MICRO_BATCHES:]:
        loss = in_float64(net, batch["x"]) if train is qlora else net(**batch)["loss"]
        (loss / MICRO_BATCHES).backward()
    nn.utils.clip_grad_norm_(trained, CLIP)
    optimizer = torch.optim.AdamW(trained, **seen.options)
    for p, state in zip(trained, seen.state, strict=True):
        optimizer.state[p] = {n: v.clone() if n == "step" else v.double() for n, v in state.items()}
    assert len(seen.gradients) == len(trained) >= 4
    for found, p in zip(seen.gradients, trained, strict=True):
        assert float((found - p.grad).norm() / p.grad.norm()) < NEAR
    optimizer.step()
    for found, p, first in zip(seen.weights, trained, seen.start, strict=True):
        assert float((found - p.detach()).norm() / (p.detach() - first).norm()) < NEAR
