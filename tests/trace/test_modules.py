"""What users do with modules and step hooks runs bit for bit as without the trace, prints the same, and is followed."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent, indent

import harness
import pytest

LOOP = """
import copy, io, pickle
import torch
from torch import nn

def main():
    torch.manual_seed(0)
    handles = []
{make}
    for step in range(6):
        x = torch.randn(8, 3, 6, 6)
        loss = model(x).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(step, loss.item())
    for handle in handles:
        handle.remove()

main()
"""

SGD = "optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)"
CONV = "nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))"
LAZY = "nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5))"

MADE = {
    "lazy, shaped by a forward pass before the optimizer": f"""
        model = {LAZY}
        model(torch.randn(2, 3, 6, 6))
        {SGD}
    """,
    "lazy, the optimizer built over parameters without a shape": f"""
        model = {LAZY}
        {SGD}
        model(torch.randn(2, 3, 6, 6))
    """,
    "lazy, shaped by the first step": f"""
        model = {LAZY}
        optimizer = torch.optim.AdamW(model.parameters())
    """,
    "lazy in bfloat16": """
        class Cast(nn.Module):
            def __init__(self):
                super().__init__()
                self.body = nn.Sequential(nn.Flatten(), nn.LazyLinear(5, dtype=torch.bfloat16))
            def forward(self, x):
                return self.body(x.bfloat16()).float()
        model = Cast()
        optimizer = torch.optim.AdamW(model.parameters())
    """,
    "lazy, cast before it has a shape": f"""
        model = {LAZY}.double().float()
        {SGD}
        model(torch.randn(2, 3, 6, 6))
    """,
    "skip_init": f"""
        last = nn.utils.skip_init(nn.Linear, 64, 5)
        nn.init.normal_(last.weight, std=0.1)
        nn.init.zeros_(last.bias)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), last)
        {SGD}
    """,
    "meta device and to_empty": f"""
        with torch.device("meta"):
            model = {CONV}
        model.to_empty(device="cpu")
        for module in model:
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        {SGD}
    """,
    "meta device and assigned weights": f"""
        with torch.device("meta"):
            model = {CONV}
        model.load_state_dict({CONV}.state_dict(), assign=True)
        {SGD}
    """,
    "parametrize": f"""
        from torch.nn.utils import parametrizations, parametrize
        class Symmetric(nn.Module):
            def forward(self, weight):
                return weight.triu() + weight.triu(1).T
        model = nn.Sequential({CONV}, nn.Linear(5, 5), nn.Linear(5, 4))
        parametrize.register_parametrization(model[1], "weight", Symmetric())
        parametrizations.weight_norm(model[2])
        parametrizations.spectral_norm(model[0][4])
        {SGD}
    """,
    "parametrized, then left": f"""
        from torch.nn.utils import parametrize
        class Half(nn.Module):
            def forward(self, weight):
                return weight / 2
            def right_inverse(self, weight):
                return weight * 2
        model = {CONV}
        parametrize.register_parametrization(model[4], "weight", Half())
        parametrize.remove_parametrizations(model[4], "weight")
        {SGD}
    """,
    "the old weight_norm and pruning": f"""
        from torch.nn.utils import prune
        model = {CONV}
        nn.utils.weight_norm(model[4])
        prune.random_unstructured(model[0], "weight", amount=0.3)
        {SGD}
    """,
    "a deep copy is trained": f"""
        first = {CONV}
        first(torch.randn(2, 3, 6, 6)).sum().backward()
        model = copy.deepcopy(first)
        {SGD}
    """,
    "model and optimizer are copied together": f"""
        model = {CONV}
        {SGD}
        model(torch.randn(2, 3, 6, 6)).sum().backward()
        optimizer.step()
        model, optimizer = copy.deepcopy((model, optimizer))
    """,
    "model and optimizer come out of a pickle": f"""
        model = {CONV}
        {SGD}
        model(torch.randn(2, 3, 6, 6)).sum().backward()
        optimizer.step()
        model, optimizer = pickle.loads(pickle.dumps((model, optimizer)))
    """,
    "the whole model is saved and read": f"""
        file = io.BytesIO()
        torch.save({CONV}, file)
        file.seek(0)
        model = torch.load(file, weights_only=False)
        {SGD}
    """,
    "an attribute that raises when it is looked at": f"""
        class Touchy(nn.Linear):
            def __getattr__(self, name):
                if name in ("weight_scale", "grad", "_fsdp_wrapped_module"):
                    raise RuntimeError(name)
                return super().__getattr__(name)
        model = nn.Sequential(nn.Flatten(), Touchy(108, 5))
        {SGD}
    """,
    "hooks for every step, registered before and after the optimizer": f"""
        from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
        said = []
        handles.append(register_optimizer_step_pre_hook(lambda o, a, k: said.append("before")))
        model = {CONV}
        {SGD}
        handles.append(register_optimizer_step_post_hook(lambda o, a, k: said.append("after")))
        handles.append(register_optimizer_step_post_hook(lambda o, a, k: print(*said)))
    """,
    "hooks of one optimizer": f"""
        model = {CONV}
        {SGD}
        optimizer.register_step_pre_hook(lambda o, a, k: print("before"))
        optimizer.register_step_post_hook(lambda o, a, k: print("after"))
    """,
    "hooks taken out by themselves": f"""
        from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
        model = {CONV}
        {SGD}
        steps = []
        optimizer.register_step_pre_hook(lambda o, a, k: steps.append(len(steps)))
        handles.append(register_optimizer_step_pre_hook(lambda o, a, k: print("before", steps)))
        handles.append(optimizer.register_step_post_hook(lambda o, a, k: print("own", steps)))
        def between(o, a, k):
            print("behind", steps)
            if len(steps) == 4:
                handles[1].remove()
                handles[0].remove()
        handles.append(register_optimizer_step_post_hook(between))
    """,
}
"""What is done with a module before it is trained; afterwards there are `model` and `optimizer`."""


def script(folder: Path, made: str) -> Path:
    path = folder / "train.py"
    path.write_text(LOOP.replace("{make}", indent(dedent(made).strip("\n"), "    ")), encoding="utf-8")
    return path


@pytest.mark.parametrize("made", MADE.values(), ids=MADE)
def test_it_runs_as_without_the_trace(tmp_path: Path, made: str) -> None:
    path = script(tmp_path, made)
    plain, traced = harness.run(path), harness.run(path, traced=True)
    assert plain.error == ""
    assert plain.tensors > 0
    assert (traced.error, traced.stdout, traced.digest) == (plain.error, plain.stdout, plain.digest)
    assert traced.report is not None
    assert traced.report.coverage.notes == []
    assert len(traced.report.coverage.traced_steps) >= 2
