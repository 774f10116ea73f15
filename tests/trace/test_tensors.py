"""Who a tensor is: one answer per memory, gone with it, and nothing that refers to the user's tensors."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import harness
import pytest
import torch
from torch import nn

from precaudit.runtime.trackers.holders import Holders
from precaudit.runtime.trackers.tensors import NOBODY, Tensors

# -- programs that torch refuses where anything refers to a tensor

LOOP = """
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for step in range(5):
        x = torch.randn(16, 8)
        loss = model(x.to(next(model.parameters()).dtype)).float().pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        {each_step}
        optimizer.step()
        print(f"{{loss.item():.6f}}")
"""

PROGRAMS = {
    "swapped after an optimizer was built": """
    torch.optim.SGD(model.parameters(), lr=0.1)
    for layer in model:
        layer.to(torch.bfloat16)
        torch.utils.swap_tensors(layer.weight, nn.Parameter(layer.weight.detach().float() * 2))
        torch.utils.swap_tensors(layer.bias, nn.Parameter(layer.bias.detach().float()))
"""
    + LOOP.format(each_step="pass"),
    "converted by swapping": """
    torch.__future__.set_swap_module_params_on_conversion(True)
    torch.optim.SGD(model.parameters(), lr=0.1)
    try:
        model.to(torch.bfloat16)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
"""
    + LOOP.format(each_step="pass"),
    "loaded by swapping": """
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model.load_state_dict({key: value.double() for key, value in model.state_dict().items()}, assign=True)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
"""
    + LOOP.format(each_step="pass"),
    "low tensors swapped in every step": LOOP.format(
        each_step="""
        ema, fresh = torch.zeros(4, dtype=torch.bfloat16), torch.ones(4).to(torch.bfloat16)
        ema.mul_(0.9).add_(fresh, alpha=0.1)
        torch.utils.swap_tensors(ema, fresh)
"""
    ),
    "weights swapped between steps": LOOP.format(
        each_step="""
        if step == 2:
            for p in model.parameters():
                gradient = p.grad.clone()
                p.grad = None
                torch.utils.swap_tensors(p, nn.Parameter(p.detach() * 0.5))
                p.grad = gradient
"""
    ),
    "nothing refers to a parameter or its gradient": LOOP.format(
        each_step="""
        print([len(weakref.getweakrefs(t)) for p in model.parameters() for t in (p, p.grad)])
"""
    ),
    "a leaf of no module dies with its last name": LOOP.format(
        each_step="""
        leaf = torch.ones(8, dtype=torch.bfloat16, requires_grad=True)
        (leaf.float() * 2).sum().backward()
        gone = weakref.ref(leaf)
        del leaf
        print(gone() is None)
"""
    ),
}


def program(body: str) -> str:
    return f"""import weakref

import torch
from torch import nn


def main():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4))
{body}

main()
"""


@pytest.mark.parametrize("body", PROGRAMS.values(), ids=PROGRAMS)
def test_programs_that_swap_tensors_run_as_without(body: str, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(program(body), encoding="utf-8")
    plain, traced = harness.run(script), harness.run(script, traced=True)
    assert plain.error == ""
    assert (traced.stdout, traced.error, traced.exit_code) == (plain.stdout, plain.error, plain.exit_code)
    assert traced.digest == plain.digest
    assert traced.report is not None
    assert [note for note in traced.report.coverage.notes if "could not follow" in note] == []


def test_a_swapped_parameter_is_what_it_is_now(tmp_path: Path) -> None:
    """It was bfloat16 when the model was built and is float32 when it is trained."""
    script = tmp_path / "train.py"
    script.write_text(program(PROGRAMS["swapped after an optimizer was built"]), encoding="utf-8")
    report = harness.run(script, traced=True).report
    assert report is not None
    assert {fact["dtype"] for fact in report.facts if fact["role"] == "master_weight"} == {"float32"}
    assert report.findings == []


# -- records


def test_nobody_is_the_answer_for_what_was_never_met() -> None:
    tensors = Tensors()
    assert tensors.of(torch.zeros(3)) is NOBODY
    assert tensors.of(torch.eye(3).to_sparse()) is NOBODY
    assert (NOBODY.parameter, NOBODY.slot, NOBODY.is_gradient, bool(NOBODY)) == (None, None, False, False)


def test_views_share_a_record_and_other_memory_does_not() -> None:
    tensors, whole = Tensors(), torch.zeros(4, 4)
    tensors.learn(whole).slot = "exp_avg"
    assert tensors.of(whole.t()[1:]).slot == "exp_avg"
    assert tensors.of(whole.detach()) is tensors.of(whole.view(16))
    assert tensors.of(whole.clone()) is NOBODY


def test_a_record_goes_with_its_memory_and_never_speaks_of_a_later_tensor() -> None:
    tensors = Tensors()
    for _ in range(64):  # the allocator gives the same address again and again
        fresh = torch.zeros(1000)
        assert tensors.of(fresh).slot is None
        tensors.learn(fresh).slot = "old"
        del fresh
    tensors.forget_expired()
    assert list(tensors.living()) == []


def test_a_record_keeps_neither_tensor_nor_memory() -> None:
    tensors, weight = Tensors(), nn.Parameter(torch.zeros(100))
    weight.grad = torch.zeros(100)
    tensors.meet_parameter(weight)
    leaf = tensors.meet_gradient(weight, weight.grad)
    assert weakref.getweakrefs(weight) == weakref.getweakrefs(weight.grad) == []
    gone = weakref.ref(weight)
    del weight
    assert gone() is None
    assert leaf.record.expired
    assert leaf.tensor() is None
    assert leaf.gradient is not None
    assert leaf.gradient.record.expired


def test_leaves_in_one_allocation_are_told_apart_by_their_offset() -> None:
    tensors, flat = Tensors(), torch.arange(12.0)
    first, second = (nn.Parameter(part) for part in (flat[:8].view(2, 4), flat[8:]))
    grads = torch.zeros(12)
    for leaf, grad in ((first, grads[:8].view(2, 4)), (second, grads[8:])):
        leaf.grad = grad
        tensors.meet_parameter(leaf)
        tensors.meet_gradient(leaf, grad)
    assert tensors.of(first) is tensors.of(second) is tensors.of(flat)
    one, other = tensors.leaf(first), tensors.leaf(second)
    assert one is not None
    assert other is not None
    assert one is not other
    assert tensors.leaf(second.detach()[1:]) is other
    assert tensors.of(grads[8:]).gradient_owner(grads[8:]) is other
    assert tensors.with_gradient() == [one, other]
    assert torch.equal(other.tensor(), flat[8:])  # type: ignore[arg-type]


def test_swapped_tensors_are_met_again() -> None:
    tensors = Tensors()
    one, other = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.ones(4))
    of_one = tensors.meet(one)
    torch.utils.swap_tensors(one, other)
    assert tensors.leaf(other) is of_one  # the memory went over to it
    assert tensors.leaf(one) is None
    assert tensors.meet(one) is not of_one


def test_a_leaf_is_found_through_its_module_else_by_its_numbers() -> None:
    tensors, module = Tensors(), nn.Linear(2, 2)
    holders = Holders(tensors)
    holders.registered(module.weight, module, "weight")
    leaf, loose = tensors.meet(module.weight), torch.ones(3, requires_grad=True)
    assert holders.find(leaf) is module.weight
    loose.sum().backward()
    assert loose.grad is not None
    like = holders.find(tensors.meet_gradient(loose, loose.grad))
    assert like is not None
    assert like is not loose
    assert (like.data_ptr(), like.grad is not None and like.grad.data_ptr()) == (
        loose.data_ptr(),
        loose.grad.data_ptr(),
    )
    module.weight = nn.Parameter(torch.zeros(2, 2))
    gc.collect()
    assert holders.find(leaf) is None


@pytest.mark.parametrize(
    ("make", "most"), [(lambda tensors, t: tensors.learn(t), 500), (lambda tensors, t: tensors.meet(t), 800)]
)
def test_a_record_is_small(make: Callable[[Tensors, torch.Tensor], object], most: int) -> None:
    """Bytes of Python objects: 100,000 tensors under AdamW have 400,000 records."""
    tensors, held = Tensors(), [torch.zeros(1) for _ in range(1000)]
    before = sys.getallocatedblocks()
    for tensor in held:
        make(tensors, tensor)
    assert (sys.getallocatedblocks() - before) / len(held) < 10
    record = tensors.of(held[0])
    size = sys.getsizeof(record) + (sys.getsizeof(record.leaf) if record.leaf else 0)
    assert size < most
