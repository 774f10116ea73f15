"""Runs a program plainly and measures it by inspection: losses, weights at each step, dtypes, what was saved.

precaudit has no part in this: it is what mutants are measured with before precaudit is asked about them.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import random
import runpy
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

ASPECTS = ("error", "losses", "weights", "dtypes", "saved", "left", "output")
DEPTH = 5


@dataclass
class Recording:
    """What one plain run of a program came to, as values that JSON can hold."""

    error: str = ""
    """The exception that ended it, as `ValueError: ...`."""
    losses: list[str] = field(default_factory=list)
    """dtype and value of the root of each backward."""
    weights: list[str] = field(default_factory=list)
    """A hash over what the optimizer holds, after each of its steps."""
    dtypes: list[str] = field(default_factory=list)
    """`weight float32`, `gradient bfloat16`, `exp_avg float32`: each that an optimizer's step was seen with."""
    saved: list[str] = field(default_factory=list)
    """A hash and the dtypes of each `torch.save`."""
    left: dict[str, list[str]] = field(default_factory=dict)
    """A hash and the dtype of each tensor that a name of `main` or of the module still held at the end."""
    output: str = ""

    def differs(self, other: Mapping[str, Any]) -> list[str]:
        """In which aspects another recording is not the same."""
        mine = asdict(self)
        found = [aspect for aspect in ASPECTS if aspect != "left" and mine[aspect] != other[aspect]]
        both = set(self.left) & set(other["left"])
        return found + ["left"] * any(self.left[name] != other["left"][name] for name in both)


def record(path: Path) -> Recording:
    """Runs a script as `python path` would, in this process, and measures it. For a process of its own."""
    found = Recording()
    seen: set[str] = set()
    stdout = io.StringIO()

    def at_return(frame: FrameType, event: str, _: Any) -> None:
        if event == "return" and frame.f_code.co_name == "main" and frame.f_code.co_filename == str(path):
            found.left |= _by_name(frame.f_locals)

    sys.argv, sys.path[:0] = [str(path)], [str(path.parent)]
    os.chdir(path.parent)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random.seed(0)
    with _watched(found, seen), contextlib.redirect_stdout(stdout), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sys.setprofile(at_return)
        try:
            found.left |= _by_name(runpy.run_path(str(path), run_name="__main__"))
        except SystemExit as stop:
            found.error = f"SystemExit: {stop.code}" if stop.code else ""
        except Exception as raised:
            found.error = f"{type(raised).__name__}: {raised}"
        finally:
            sys.setprofile(None)
    found.dtypes = sorted(seen)
    found.output = stdout.getvalue()
    return found


@contextlib.contextmanager
def _watched(found: Recording, seen: set[str]) -> Iterator[None]:
    """Records each backward, each optimizer step and each `torch.save` into `found`, dtypes into `seen`."""
    backward, save = torch.autograd.backward, torch.save

    def record_backward(tensors: Any, *args: Any, **kwargs: Any) -> Any:
        for root in tensors if isinstance(tensors, (list, tuple)) else [tensors]:
            found.losses.append(f"{_dtype(root)} {root.detach().double().sum().item()!r}")
        return backward(tensors, *args, **kwargs)

    def record_step(optimizer: Any, *_: Any) -> None:
        held = hashlib.sha256()
        for group in optimizer.param_groups:
            for p in group["params"]:
                seen.add(f"weight {_dtype(p)}")
                if p.grad is not None:
                    seen.add(f"gradient {_dtype(p.grad)}")
                held.update(_bytes(p))
                for slot, value in optimizer.state.get(p, {}).items():
                    if isinstance(value, torch.Tensor):
                        seen.add(f"{slot} {_dtype(value)}")
                        held.update(_bytes(value))
        found.weights.append(held.hexdigest()[:16])

    def record_save(what: Any, *args: Any, **kwargs: Any) -> Any:
        keys = sorted(map(str, what)) if isinstance(what, Mapping) else []
        found.saved += [*sorted(_tensors(what)), f"keys {keys}"]
        return save(what, *args, **kwargs)

    hook = register_optimizer_step_post_hook(record_step)
    torch.autograd.backward, torch.save = record_backward, record_save
    try:
        yield
    finally:
        torch.autograd.backward, torch.save = backward, save
        hook.remove()


def _by_name(variables: Mapping[str, Any]) -> dict[str, list[str]]:
    return {name: sorted(_tensors(v)) for name, v in variables.items() if not name.startswith("__")}


def _tensors(value: Any, depth: int = 0) -> Iterator[str]:
    """`float32 3f2a…` for each tensor in a value: in containers, modules, optimizers and a script's own objects."""
    if isinstance(value, torch.Tensor):
        yield f"{_dtype(value)} {hashlib.sha256(_bytes(value)).hexdigest()[:12]}"
    elif depth > DEPTH:
        return
    elif isinstance(value, Mapping):
        for item in list(value.values()):
            yield from _tensors(item, depth + 1)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item, depth + 1)
    elif isinstance(value, torch.nn.Module):
        yield from _tensors([*value.parameters(), *value.buffers()], depth + 1)
    elif isinstance(value, (torch.optim.Optimizer, torch.amp.GradScaler)):
        yield from _tensors(value.state_dict(), depth + 1)
    elif type(value).__module__ == "__main__" and hasattr(value, "__dict__"):
        yield from _tensors(vars(value), depth + 1)


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _bytes(tensor: torch.Tensor) -> bytes:
    if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        return b""
    if hasattr(tensor, "to_local"):
        tensor = tensor.to_local()
    return bytes(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
