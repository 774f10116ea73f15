"""Dynamo compiles the user's frames and none of ours: the same frames and graph breaks with and without the trace."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

GRAPH_BREAKS = """
import torch
from torch._dynamo.utils import counters

torch.manual_seed(0)
linear = torch.nn.Linear(4, 4)
optimizer = torch.optim.SGD(linear.parameters(), 0.1)


@torch.compile(backend="aot_eager")
def loss_of(inputs):
    outputs = linear(inputs)
    if outputs.sum() > 0:  # a branch on a value: Dynamo ends one graph here and begins another
        outputs = outputs * 2
    return outputs.square().mean()


for _ in range(6):
    loss_of(torch.randn(2, 4)).backward()
    optimizer.step()
    optimizer.zero_grad()
print(sorted(counters["frames"].items()), sorted(counters["graph_break"].items()), linear.weight.sum().item())
"""

COMPILED_AUTOGRAD = """
import torch

torch.manual_seed(0)
torch._dynamo.config.compiled_autograd = True
model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
optimizer = torch.optim.Adam(model.parameters(), 1e-2)
forward = torch.compile(lambda inputs: model(inputs).square().mean(), backend="aot_eager")


@torch.compile(backend="aot_eager")
def train(inputs):
    loss = forward(inputs)
    loss.backward()
    return loss


for _ in range(6):
    optimizer.zero_grad()
    train(torch.randn(4, 8))
    optimizer.step()
print(model[0].weight.sum().item())
"""


@pytest.mark.parametrize("program", [GRAPH_BREAKS, COMPILED_AUTOGRAD], ids=["graph breaks", "compiled autograd"])
def test_a_compiled_program_prints_the_same_under_the_trace(program: str, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(program)
    plain = [sys.executable, str(script)]
    traced = [sys.executable, "-m", "precaudit", "trace", "--keep-going", "--fail-on", "never", *plain]
    printed = [
        subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        for command in (plain, traced)
    ]
    assert printed[0] == printed[1] != ""


COMPILED_STEP = """
import torch
from torch._dynamo.utils import counters

torch.manual_seed(0)
linear = torch.nn.Linear(4, 4)
optimizer = torch.optim.Adam(linear.parameters(), torch.tensor(0.1))
step = torch.compile(lambda: optimizer.step(), backend="aot_eager", fullgraph=False)
for number in range(6):
    linear(torch.randn(2, 4)).square().mean().backward()
    step()
    optimizer.zero_grad()
    if number == 1:
        before = dict(counters["frames"])
print(counters["frames"] == before, sorted(counters["graph_break"].values()), linear.weight.sum().item())
"""
"""True where nothing is compiled anew once the window has closed."""

MAKE_FX = """
import torch
from torch.fx.experimental.proxy_tensor import make_fx

torch.manual_seed(0)
model = torch.nn.Linear(4, 4)
optimizer = torch.optim.Adam(model.parameters())
for _ in range(4):
    graph = make_fx(lambda x: torch.autograd.grad(model(x).square().mean(), list(model.parameters())))(torch.ones(2, 4))
    print([node.name for node in graph.graph.nodes])
    model(torch.randn(2, 4)).square().mean().backward()
    optimizer.step()
"""


@pytest.mark.parametrize("program", [COMPILED_STEP, MAKE_FX], ids=["compiled step", "make_fx"])
def test_what_a_compiler_writes_down_holds_nothing_of_ours(program: str, tmp_path: Path) -> None:
    test_a_compiled_program_prints_the_same_under_the_trace(program, tmp_path)
