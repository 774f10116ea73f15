"""A traced run is the plain run to the bit in each way to train: precision × optimizer × what a step is made of."""

from __future__ import annotations

import itertools
from pathlib import Path

import harness
import pytest

PRECISIONS = {
    "float32": ("", "contextlib.nullcontext()"),
    "bfloat16": ("model.bfloat16()", "contextlib.nullcontext()"),
    "autocast bfloat16": ("", "torch.autocast('cpu', torch.bfloat16)"),
    "autocast float16, scaled": ("scaler = torch.amp.GradScaler('cpu')", "torch.autocast('cpu', torch.float16)"),
}
"""Name -> (what is done to the model, what forward runs in)."""
OPTIMIZERS = {
    "SGD": "torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)",
    "AdamW": "torch.optim.AdamW(model.parameters(), 1e-2)",
    "AdamW for-loop": "torch.optim.AdamW(model.parameters(), 1e-2, foreach=False)",
    "AdamW foreach": "torch.optim.AdamW(model.parameters(), 1e-2, foreach=True)",
    "AdamW fused": "torch.optim.AdamW(model.parameters(), 1e-2, fused=True)",
    "RMSprop": "torch.optim.RMSprop(model.parameters(), 1e-3)",
    "LBFGS": "torch.optim.LBFGS(model.parameters(), 1e-2, max_iter=3)",
}
STEPS = {
    "plain": "backward(loss_of(batch()))",
    "accumulation": "for _ in range(3): backward(loss_of(batch()) / 3)",
    "clipping": "backward(loss_of(batch())); unscale(); nn.utils.clip_grad_norm_(model.parameters(), 1.0)",
    "checkpointing": "backward(checkpoint(loss_of, batch(), use_reentrant=False))",
    "reentrant checkpointing": "backward(checkpoint(loss_of, batch().requires_grad_(), use_reentrant=True))",
    "hooks": "calls.append(0); backward(loss_of(batch()))",
    "modes": "with Counts(), Functions(): backward(loss_of(batch()))",
    "saved on cpu": "with torch.autograd.graph.save_on_cpu(): backward(loss_of(batch()))",
    "penalty": "backward(loss_of(batch()) + penalty(batch()))",
    "functional": "backward(torch.func.functional_call(model, dict(model.named_parameters()), batch()).float().sum())",
}
PROGRAM = """
import contextlib, torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

calls = []


class Counts(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        calls.append(str(func))
        return func(*args, **(kwargs or {{}}))


class Functions(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        calls.append(getattr(func, "__name__", "?"))
        return func(*args, **(kwargs or {{}}))


def main():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.GELU(), nn.Linear(8, 3))
    scaler = None
    {prepare}
    optimizer = {optimizer}
    model[0].weight.register_hook(lambda gradient: calls.append(gradient.dtype))
    model[4].register_forward_hook(lambda module, inputs, output: calls.append(output.dtype))

    def batch():
        return torch.randn(5, 6, dtype=model[0].weight.dtype)

    def loss_of(inputs):
        with {forward}:
            return nn.functional.cross_entropy(model(inputs).float(), torch.randint(0, 3, (5,)))

    def penalty(inputs):
        inputs.requires_grad_()
        return torch.autograd.grad(loss_of(inputs), inputs, create_graph=True)[0].float().square().sum()

    def backward(loss):
        (scaler.scale(loss) if scaler else loss).backward()

    def unscale():
        if scaler:
            scaler.unscale_(optimizer)

    losses = []

    def closure():
        optimizer.zero_grad()
        {step}
        losses.append(len(calls))
        return torch.zeros(())

    for _ in range(5):
        if isinstance(optimizer, torch.optim.LBFGS):
            optimizer.step(closure)
            continue
        closure()
        if scaler:
            scaler.step(optimizer)
            scaler.update()
        else:
            with Functions():
                optimizer.step()
    print(len(calls), calls[-3:], torch.rand(2))


main()
"""


def configurations() -> list[tuple[str, str, str]]:
    """Each step with each precision and two optimizers, each optimizer with each precision: 60 and more."""
    wide = itertools.product(PRECISIONS, ("SGD", "AdamW"), STEPS)
    narrow = itertools.product(PRECISIONS, OPTIMIZERS, ("plain", "accumulation"))
    scaled = "autocast float16, scaled"  # a GradScaler takes no closure
    return [one for one in dict.fromkeys([*wide, *narrow]) if one[:2] != (scaled, "LBFGS")]


@pytest.mark.parametrize(
    "configuration",
    [
        pytest.param(one, marks=[] if number % 4 == 0 else [pytest.mark.slow], id=" · ".join(one))
        for number, one in enumerate(configurations())
    ],
)
def test_every_tensor_state_and_random_number_is_the_same(configuration: tuple[str, str, str], tmp_path: Path) -> None:
    precision, optimizer, step = configuration
    prepare, forward = PRECISIONS[precision]
    path = tmp_path / "train.py"
    path.write_text(PROGRAM.format(prepare=prepare, forward=forward, optimizer=OPTIMIZERS[optimizer], step=STEPS[step]))
    plain = harness.run(path)
    traced = harness.run(path, traced=True, looks_on=True)  # as --keep-going does
    assert plain.error == ""
    assert (traced.error, traced.stdout, traced.digest) == (plain.error, plain.stdout, plain.digest)
    assert traced.report is not None
    assert traced.report.coverage.steps >= 2
    assert not [note for note in traced.report.coverage.notes if "could not follow" in note]


def test_the_matrix_has_at_least_sixty_configurations() -> None:
    assert len(configurations()) >= 60
