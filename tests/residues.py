"""What the trace could leave behind in a process: names that it patches, torch's tables of hooks, modes, threads."""

from __future__ import annotations

import importlib
import sys
import threading
from typing import Any

WATCHED = (
    ("torch.autograd", "_engine_run_backward"),
    ("torch.autograd.graph", "_engine_run_backward"),
    ("torch.nn", "Module.to"),
    ("torch.nn", "Module._apply"),
    ("torch.nn", "Module.__call__"),
    ("torch.nn", "Module.__setattr__"),
    ("torch.nn", "Module.load_state_dict"),
    ("torch.optim", "Optimizer.__init__"),
    ("torch.optim.lr_scheduler", "ReduceLROnPlateau.step"),
    ("torch.optim", "Optimizer.load_state_dict"),
    ("torch.optim", "Optimizer.profile_hook_step"),
    ("torch.optim", "Optimizer.zero_grad"),
    ("torch.amp", "GradScaler.__init__"),
    ("torch.amp", "GradScaler.scale"),
    ("torch.amp", "GradScaler.unscale_"),
    ("torch.amp", "GradScaler.step"),
    ("torch.amp", "GradScaler.update"),
    ("torch.amp", "GradScaler.get_scale"),
    ("torch.amp", "autocast.__enter__"),
    ("torch.amp", "autocast.__exit__"),
    ("torch", "Tensor.backward"),
    ("torch", "autograd.backward"),
    ("torch", "autograd.grad"),
    ("torch", "save"),
    ("torch", "load"),
    ("torch", "set_default_dtype"),
    ("torch.nn.utils", "clip_grad_norm_"),
    ("torch.nn.utils", "clip_grad_value_"),
    ("torch.distributed", "all_reduce"),
    ("torch.distributed", "init_process_group"),
    ("torch.distributed.distributed_c10d", "init_process_group"),
    ("torch.distributed.device_mesh", "init_process_group"),
    ("threading", "Thread.run"),
    ("threading", "Thread.start"),
    ("sys", "excepthook"),
)
"""Every name the trace patches, or might."""

GLOBAL_HOOKS = (
    ("torch.nn.modules.module", "_global_forward_hooks"),
    ("torch.nn.modules.module", "_global_forward_pre_hooks"),
    ("torch.nn.modules.module", "_global_backward_hooks"),
    ("torch.nn.modules.module", "_global_backward_pre_hooks"),
    ("torch.nn.modules.module", "_global_parameter_registration_hooks"),
    ("torch.nn.modules.module", "_global_buffer_registration_hooks"),
    ("torch.nn.modules.module", "_global_module_registration_hooks"),
    ("torch.optim.optimizer", "_global_optimizer_pre_hooks"),
    ("torch.optim.optimizer", "_global_optimizer_post_hooks"),
)


def residue() -> dict[str, Any]:
    """What the trace could leave behind, by name: the object itself for patched names, the keys for hook tables."""
    import torch
    from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

    found: dict[str, Any] = {}
    for module, dotted in WATCHED:
        owner: Any = importlib.import_module(module)
        *front, last = dotted.split(".")
        for name in front:
            owner = getattr(owner, name)
        value = vars(owner).get(last) if isinstance(owner, type) else getattr(owner, last, None)
        found[f"{module}.{dotted}"] = [id(v) for v in value] if isinstance(value, list) else value
    for module, table in GLOBAL_HOOKS:
        found[f"{module}.{table}"] = list(getattr(importlib.import_module(module), table))
    found["dispatch modes"] = [type(mode).__name__ for mode in _get_current_dispatch_mode_stack()]
    found["function modes"] = torch._C._len_torch_function_stack()
    found["saved-tensor hooks"] = torch._C._autograd._saved_tensors_hooks_is_enabled()
    found["saved-tensor hook on top"] = torch._C._autograd._top_saved_tensors_default_hooks(False)
    # Frameworks that a test imports add finders of their own.
    finders = [str(getattr(finder, "__module__", "")) for finder in sys.meta_path]
    found["import finders"] = [name for name in finders if name.partition(".")[0] in ("precaudit", "sitecustomize")]
    found["profile function"] = sys.getprofile()
    found["threads"] = sum(t.name.startswith("precaudit") for t in threading.enumerate())
    return found
