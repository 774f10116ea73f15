"""A preflight is one layer: what it changes it puts back, and what is not for a device is as it was."""

from __future__ import annotations

import importlib
import sys
import threading
from pathlib import Path
from typing import Any

import harness
import pytest
import torch

from precaudit.commands.preflight import DEVICES as NAMES
from precaudit.preflight.devices import DEVICES
from precaudit.preflight.layer import Layer, start

OWNERS = (
    "torch", "torch.cuda", "torch.cuda.nvtx", "torch.cuda.memory", "torch.cuda.graphs", "torch.accelerator",
    "torch.Tensor",
    "torch.nn.Module", "torch.nn.DataParallel", "torch.nn.functional", "torch.autograd", "torch.autograd.graph",
    "torch.backends.cudnn", "torch.UntypedStorage", "torch.cuda.nccl", "torch.nn.parallel.DistributedDataParallel",
    "os.environ", "precaudit.runtime.torch_private", "torch.distributed", "torch.distributed.distributed_c10d",
    "torch.utils._device.DeviceContext", "threading.Thread",
)  # fmt: skip


def contents() -> dict[str, Any]:
    """Every name of whatever a preflight changes something in, and torch's kernels and modes."""
    found: dict[str, Any] = {}
    for dotted in OWNERS:
        try:
            owner: Any = importlib.import_module(dotted)
        except ImportError:
            module, _, name = dotted.rpartition(".")
            owner = getattr(importlib.import_module(module), name)
        if dotted == "os.environ":
            found |= {f"variable {name}": value for name, value in owner.items()}
            continue
        found |= {f"{dotted}.{name}": value for name, value in vars(owner).items() if not name.startswith("__")}
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    for name in torch._C._dispatch_get_all_op_names():
        found[name] = has(name, "CUDA"), has(name, "AutocastCPU")
    found["function modes"] = torch._C._len_torch_function_stack()
    found["dispatch modes"] = torch._C._len_torch_dispatch_stack()
    return found


ONE_OF_MANY = {"size": 8, "rank": 3, "node": 4}


@pytest.mark.parametrize("more", [{}, {"fake": True}, {"world": ONE_OF_MANY}, {"fake": True, "world": ONE_OF_MANY}])
def test_nothing_is_left_of_it(more: dict[str, Any]) -> None:
    before = contents()
    layer = start({"device": "h100", **more})
    during = contents()
    layer.remove()
    after = contents()
    assert sum(during[name] is not before.get(name) and during[name] != before.get(name) for name in during) > 200
    assert {
        name
        for name in after
        if name not in before or (after[name] is not before[name] and after[name] != before[name])
    } == set()
    assert before.keys() == after.keys()


def test_the_command_offers_each_device_that_there_is() -> None:
    assert tuple(DEVICES) == tuple(sorted(NAMES, key=list(DEVICES).index))
    assert set(NAMES) == set(DEVICES)


def test_a_tensor_is_where_it_was_made_or_moved(layer: Layer) -> None:
    here = torch.zeros(3)
    there = here.to("cuda")
    assert (here.device, here.is_cuda, here.is_cpu, here.get_device()) == (torch.device("cpu"), False, True, -1)
    assert (there.device, there.is_cuda, there.is_cpu, there.get_device()) == (torch.device("cuda:0"), True, False, 0)
    assert there.type() == "torch.cuda.FloatTensor"
    assert isinstance(there, torch.cuda.FloatTensor)
    assert not isinstance(here, torch.cuda.FloatTensor)
    assert {t.device.type for t in (there * 2, there[1:], there.T, there.sum(), torch.cat([there, there]))} == {"cuda"}
    assert {t.device.type for t in (here * 2, there.cpu(), there.to("cpu"), torch.zeros(3))} == {"cpu"}
    assert there.to("cuda") is there


def test_a_generator_is_where_it_was_asked_for(layer: Layer) -> None:
    there = torch.Generator(device="cuda").manual_seed(3)
    assert (there.device, torch.Generator().device) == (torch.device("cuda:0"), torch.device("cpu"))
    assert isinstance(there, torch.Generator)
    drawn = torch.randn(4, device="cuda", generator=there)
    assert drawn.is_cuda
    assert torch.equal(drawn.cpu(), torch.randn(4, generator=torch.Generator().manual_seed(3)))


def test_moving_copies_and_staying_does_not(layer: Layer) -> None:
    here = torch.zeros(3)
    there = here.cuda()
    there += 1
    back = there.cpu()
    there += 1
    assert (here.tolist(), back.tolist(), there.tolist()) == ([0.0] * 3, [1.0] * 3, [2.0] * 3)


def test_gradients_and_optimizer_state_are_where_the_parameter_is(layer: Layer) -> None:
    with torch.device("cuda"):
        model = torch.nn.Linear(3, 3)
    seen = []
    model.weight.register_hook(lambda gradient: seen.append(gradient.device.type))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model(torch.ones(2, 3, device="cuda")).sum().backward()
    optimizer.step()
    assert seen == ["cuda"]
    assert model.weight.grad is not None
    assert model.weight.grad.device == torch.device("cuda:0")
    assert {v.device.type for v in optimizer.state[model.weight].values()} == {"cuda"}


@pytest.mark.parametrize(("by", "rules"), [("div", {"PA201"}), ("mul", set())])
def test_float16_without_loss_scaling_is_told_of_a_loss_on_the_device(layer: Layer, by: str, rules: set[str]) -> None:
    """Divided by a number of tokens that lies there it is no larger; multiplied by one it may be scaled."""

    def train() -> None:
        torch.manual_seed(0)
        model, tokens = torch.nn.Linear(16, 4).cuda(), torch.tensor(8.0, device="cuda")
        optimizer = torch.optim.AdamW(model.parameters())
        for _ in range(4):
            with torch.autocast("cuda", torch.float16):
                out = model(torch.randn(8, 16, device="cuda"))
            getattr(out.float().square().sum() / 2, by)(tokens).backward()
            optimizer.step()
            optimizer.zero_grad()

    assert set(harness.loud(harness.trace_call(train, preflight=layer.told))) == rules


def test_optimizers_choose_foreach_as_on_a_gpu(layer: Layer) -> None:
    from torch.optim.optimizer import _default_to_fused_or_foreach

    parameter = torch.nn.Parameter(torch.ones(3, device="cuda"))
    assert _default_to_fused_or_foreach([parameter], False) == (False, True)


@pytest.mark.parametrize("heads_of_the_mask", [None, 1, 4])
def test_attention_of_dtensors_runs_on_each_rank_s_heads(
    heads_of_the_mask: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As CUDA's fused kernels do: torch has no sharding of the CPU's, and a 2-D parallel model would end there."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # a process group sets another, and leaves it
    given = [torch.randn(2, 4, 8, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    mask = None if heads_of_the_mask is None else torch.randn(1, heads_of_the_mask, 8, 8)

    def attention(query: Any, key: Any, value: Any, mask: Any) -> Any:
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, mask, is_causal=mask is None)

    plain = [one.clone().requires_grad_() for one in given[:3]]
    wanted = attention(*plain, mask)
    wanted.backward(given[3])
    layer = start({"device": "h100", "world": {"size": 2, "rank": 0, "node": 2}})
    try:
        torch.distributed.init_process_group("nccl")
        tensors = importlib.import_module("torch.distributed.tensor")
        mesh = torch.distributed.device_mesh.init_device_mesh("cuda", (2,))

        def placed(one: torch.Tensor, dim: int) -> Any:
            local = one.cuda() if one.shape[1] == 1 else one.cuda().chunk(2, 1)[0].clone()
            by = tensors.Replicate() if one.shape[1] == 1 else tensors.Shard(dim)
            return tensors.DTensor.from_local(local.detach().requires_grad_(one.requires_grad), mesh, [by])

        sharded = [placed(one, 1).detach().requires_grad_() for one in plain]
        out = attention(*sharded, None if mask is None else placed(mask, 1))
        out.backward(placed(given[3], 1))
        assert out.placements == (tensors.Shard(1),)
        assert out.to_local().tolist() == wanted.chunk(2, 1)[0].tolist()
        for one, whole in zip(sharded, plain, strict=True):
            assert one.grad.to_local().tolist() == whole.grad.chunk(2, 1)[0].tolist()
    finally:
        torch.distributed.destroy_process_group()
        layer.remove()


def test_another_thread_sees_the_same(layer: Layer) -> None:
    seen: list[Any] = []

    def look() -> None:
        made = torch.tensor([1.0], device="cuda") * 2
        with torch.autocast("cuda", torch.bfloat16):
            seen.extend([made.device.type, torch.mm(made.view(1, 1), made.view(1, 1)).dtype])

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == ["cuda", torch.bfloat16]


@pytest.mark.parametrize("name", NAMES)
def test_a_device_answers_as_itself(name: str) -> None:
    layer, device = start({"device": name}), DEVICES[name]
    try:
        told = torch.cuda.get_device_properties(0)
        assert torch.cuda.get_device_capability() == (device.major, device.minor) == (told.major, told.minor)
        assert torch.cuda.get_device_name() == device.name
        assert torch.cuda.mem_get_info()[1] == told.total_memory == device.memory
        assert torch.cuda.is_bf16_supported(including_emulation=False) is (name != "v100")
    finally:
        layer.remove()


def test_a_module_that_chooses_its_binaries_hears_that_there_is_no_device(
    layer: Layer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """bitsandbytes imports torch itself: its own import may have begun before ours."""
    (tmp_path / "bitsandbytes.py").write_text("import torch\nheard = torch.cuda.is_available()\n")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("bitsandbytes")
    monkeypatch.delitem(sys.modules, "bitsandbytes")
    assert module.heard is False
    assert torch.cuda.is_available()
