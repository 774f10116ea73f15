"""Every private torch name precaudit uses, in one place, each with what is lost where it is missing."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import re
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from types import CodeType, FrameType, ModuleType
from typing import Any

import torch
import torch.autograd.graph
import torch.optim.optimizer as optimizers
import torch.utils._python_dispatch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

NEEDED = (
    "UntypedStorage._expired", "UntypedStorage._free_weak_ref", "UntypedStorage._new_with_weak_ptr",
    "_C._ForceDispatchKeyGuard", "_C._RestorePythonTLSSnapshot", "_C._TorchDispatchModeKey",
    "_C._current_graph_task_id", "_C._dispatch_tls_local_exclude_set", "_C._dispatch_tls_local_include_set",
    "_C._functorch", "_C._get_dispatch_mode", "_C._get_dispatch_stack_at", "_C._len_torch_dispatch_stack",
    "_C._pop_torch_dispatch_stack", "_C._push_on_torch_dispatch_stack", "_C._storage_address",
    "utils._python_dispatch",
)  # fmt: skip
"""Where one of these is missing nothing can be traced, and is not begun; without another, less is seen, and said."""


def missing() -> list[str]:
    """Which of `NEEDED` this torch does not have."""

    def is_there(name: str) -> bool:
        found: Any = torch
        for part in name.split("."):
            found = getattr(found, part, None)
        return found is not None

    return [f"torch.{name}" for name in NEEDED if not is_there(name)]


if missing():
    raise ImportError(f"torch {torch.__version__} has no {', '.join(missing())}, which a trace rests on")

DispatchMode: Any = torch.utils._python_dispatch.TorchDispatchMode

graph_task_id: Callable[[], int] = torch._C._current_graph_task_id
"""-1 outside of backward."""

PLAIN: set[type] = {torch.Tensor, torch.nn.Parameter, torch.nn.parameter.Buffer}
"""Classes whose tensors hold their own numbers; wrappers such as DTensor hold other tensors."""


def is_plain(kind: type) -> bool:
    """Whether a class not yet in PLAIN belongs there: one with attributes of its own but no dispatch, as Params4bit.

    Such a class takes no op itself: a mode that left it one would have torch refuse the op.
    """
    if getattr(kind, "__torch_dispatch__", None) is not torch._C._disabled_torch_dispatch_impl:
        return False
    PLAIN.add(kind)
    return True


def simulates(kind: type) -> bool:
    """Whether tensors of this class stand for others without numbers: FakeTensor, as DTensor uses to learn a shape.

    Such a class leaves the op to the mode it belongs to, which is asked only if no mode before it gives up.
    """
    return kind.__module__.startswith("torch._subclasses.")


def kernel_of(func: Any) -> Any:
    """What `func(...)` calls: an OpOverload's own `__call__` is a Python frame of 0.3 µs around it."""
    return getattr(func, "_op", func)


def is_foreign(func: Any) -> bool:
    """Whether an op comes from a library, not from torch's core: its kernel is code that calls ops in its turn."""
    schema = getattr(func, "_schema", None)
    return schema is not None and schema.name.partition("::")[0] not in ("aten", "prim", "prims")


def is_composite(func: Any) -> bool:
    """Whether an op of torch's core is nothing but calls of others: only inference mode has those arrive whole."""
    name = func.name() if isinstance(func, torch._ops.OpOverload) else ""
    if not name.startswith("aten::") or not func._can_decompose():
        return False
    return not any(torch._C._dispatch_has_kernel_for_dispatch_key(name, key) for key in ("CPU", "CUDA"))


def is_written_in_python(func: Any) -> bool:
    """Whether a library's op runs Python code, which may count its calls, draw numbers or print."""
    name = func._schema.name.replace("::", "/")
    known = getattr(torch.library, "_impls", None)
    if known is None:
        return True
    ours = [key for key in known if key.startswith((f"{name}/", f"{name}."))]
    return any(not key.endswith(("/Meta", "/Autograd", "/Functionalize")) for key in ours)


def run_foreign(func: Any, args: Any, kwargs: Any) -> Any:
    """Runs a library's op from inside our mode as it would run without: a mode's body has autocast and autograd off.

    torch's own kernels ask neither. Below another mode, a tensor class or functorch they are off without us too.
    """
    if _below_another_dispatch() or torch._C._functorch.maybe_current_level() is not None:
        return func(*args, **kwargs)
    return _as_without_us(func, args, kwargs)


def has_kernels_of_its_own(tensor: Tensor) -> bool:
    """Whether ops that are made of others may be one kernel for this tensor: nested, sparse, MKLDNN, quantized."""
    return tensor.layout is not torch.strided or tensor.is_nested or tensor.is_quantized


def run_composite(mode: DispatchMode, func: Any, args: Any, kwargs: Any) -> Any:
    """Runs the ops that an op is made of, each as the mode would see it outside of inference mode."""
    with mode:
        return _as_without_us(func.decompose, args, kwargs)


def _as_without_us(func: Any, args: Any, kwargs: Any) -> Any:
    with torch._C._RestorePythonTLSSnapshot():
        excluded = torch._C._dispatch_tls_local_exclude_set()
    with torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), excluded):
        return func(*args, **kwargs)


def _below_another_dispatch() -> bool:
    frame: FrameType | None = sys._getframe(2)
    found = 0
    while frame is not None and found < 2:  # the innermost is our own mode
        found += frame.f_code.co_name == "__torch_dispatch__"
        frame = frame.f_back
    return found > 1


def unwrapped(tensor: Tensor) -> Tensor:
    """The plain tensor inside what torch.func's transforms hand around."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def storage_key(tensor: Tensor) -> int:
    """What views of one allocation share; 0 for tensors without storage (sparse, fake, nested)."""
    try:
        return storage_address(tensor)
    except NO_STORAGE:
        return 0


storage_address: Callable[[Tensor], int] = torch._C._storage_address
"""The same, but for tensors without storage it raises one of NO_STORAGE."""
NO_STORAGE = (RuntimeError, NotImplementedError, TypeError)


def weak_storage(tensor: Tensor) -> Any:
    """A weak reference to the tensor's storage. While it is held, the storage's key is not given to another storage."""
    return StorageWeakRef(tensor.untyped_storage())


def weak_storage_number(tensor: Tensor) -> int:
    """The same as a number, which whoever asks for it gives to `free_weak_storage` once."""
    return int(tensor.untyped_storage()._weak_ref())


free_weak_storage: Callable[[int], None] = torch.UntypedStorage._free_weak_ref
storage_is_gone: Callable[[int], bool] = torch.UntypedStorage._expired
"""Whether the storage of a weak reference's number was freed."""
storage_of: Callable[[int], torch.UntypedStorage | None] = torch.UntypedStorage._new_with_weak_ptr
"""The storage of a weak reference's number, None where it was freed."""


def local(tensor: Tensor) -> Tensor:
    """The rank's own tensor inside a DTensor, or behind a flat parameter of FSDP1; any other tensor as it is."""
    if type(tensor) in PLAIN:
        return tensor
    own = getattr(tensor, "_local_tensor", tensor)
    shard = getattr(own, "_local_shard", None)
    return shard if isinstance(shard, Tensor) else own


def without_graph(tensor: Tensor) -> Tensor | None:
    """The rank's own plain tensor, detached; None for one whose class would hear of that: a user's wrapper."""
    own = local(tensor)
    return own.detach() if type(own) in PLAIN or is_plain(type(own)) else None


def parts(tensor: Tensor) -> list[tuple[str, Tensor]]:
    """(attribute path, tensor) of what really holds this tensor's numbers: a wrapper's own `.dtype` is only its looks.

    A plain tensor is its own one part, under "". Of a DTensor, the rank's own tensor.
    """
    own = local(tensor)
    flatten = None if type(own) in PLAIN else getattr(own, "__tensor_flatten__", None)
    if flatten is None:
        return [("", own)]
    out = []
    for name in flatten()[0]:
        inner = getattr(own, name)
        if isinstance(inner, Tensor):
            out += [(f"{name}.{below}".strip("."), part) for below, part in parts(inner)]
    return out


def largest_part(tensor: Tensor) -> Tensor:
    """Of the parts of a wrapper the one that holds most of its numbers; a plain tensor itself."""
    return tensor if type(tensor) in PLAIN else max((part for _, part in parts(tensor)), key=Tensor.numel)


def flattened(tensors: list[Tensor]) -> Tensor:
    """A copy of all elements of tensors of one dtype, one after the other; half of what `cat` of their views costs."""
    flat: Tensor = torch._C._nn.flatten_dense_tensors(tensors)
    return flat.clone() if len(tensors) == 1 else flat


def is_tracing() -> bool:
    """Whether this thread is inside a compiler's trace: tensors are fake, and a backward there is no training."""
    # Nearly always no mode is on, and a generator would cost more than the question.
    return modes_below() > 0 and any(torch._C._get_dispatch_mode(key) is not None for key in _TRACING)


_TRACING = [getattr(torch._C._TorchDispatchModeKey, name) for name in ("FAKE", "PROXY", "FUNCTIONAL")]


modes_below: Callable[[], int] = torch._C._len_torch_dispatch_stack
"""Asked inside of our mode: how many modes will see what it calls. They are torch's own, of a make_fx in progress."""


def next_sequence_number() -> int:
    """The number the next autograd node of this thread will get, -1 where torch does not tell."""
    ask = getattr(torch._C._autograd, "_get_sequence_nr", None)
    return int(ask()) if ask else -1


def sequence_number(node: Any) -> int:
    """The number an autograd node got when it was made, -1 where torch does not tell."""
    ask = getattr(node, "_sequence_nr", None)
    return int(ask()) if ask else -1


def output_metadata(node: Any) -> tuple[Any, ...]:
    """(dtype, shape) holders of the forward values an autograd node stands for."""
    try:
        return tuple(node._input_metadata)
    except (AttributeError, RuntimeError):
        return ()


def saved_factor(node: Any) -> float | Tensor | None:
    """The number a MulBackward0 or DivBackward0 multiplied or divided by: one on a device as the tensor it is."""
    try:
        other = node._saved_other
    except (AttributeError, RuntimeError):
        return None
    if isinstance(other, Tensor):
        if other.numel() != 1:
            return None
        return float(other.item()) if other.device.type == "cpu" else other
    return float(other) if isinstance(other, (int, float)) else None


_AFTER_PARAMETERS = ("AccumulateGrad", "RegisterPostBackwardFunctionBackward")
"""Nodes in whose hooks DDP, FSDP1 and DeepSpeed, and in whose backward FSDP2 reduces the gradients of parameters."""


def differentiates_forward() -> bool:
    """Whether the autograd node that runs now belongs to an op of the forward pass; False where torch does not tell."""
    ask = getattr(torch._C, "_current_autograd_node", None)
    node = ask() if ask is not None else None
    return node is not None and type(node).__name__ not in _AFTER_PARAMETERS


def running_node() -> int:
    """The sequence number of torch's own autograd node that runs now; -1 in none, in a Function of the user's."""
    ask = getattr(torch._C, "_current_autograd_node", None)
    node = ask() if ask is not None else None
    if node is None or isinstance(node, torch.autograd.function.BackwardCFunction):
        return -1
    return sequence_number(node)


def is_capturing(tensor: Tensor) -> bool:
    """Whether a CUDA graph is being recorded: what is computed now has no value yet."""
    return tensor.is_cuda and bool(torch.cuda.is_current_stream_capturing())


def fsdp2_begins() -> tuple[type, str]:
    """The method that every `fully_shard` call goes through with its new state, once that module was imported."""
    from torch.distributed.fsdp._fully_shard._fsdp_state import FSDPState

    return FSDPState, "init"


def patch_engine(wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Callable[[], None]:
    """Wraps the one function all backward calls go through, however they were imported. Returns the undo."""
    original = torch.autograd.graph._engine_run_backward
    wrapped = wrap(original)
    holders: list[Any] = [torch.autograd, torch.autograd.graph]
    for holder in holders:
        holder._engine_run_backward = wrapped

    def undo() -> None:
        for holder in holders:
            if holder._engine_run_backward is wrapped:
                holder._engine_run_backward = original

    return undo


def before_next_backward(act: Callable[[], None]) -> Callable[[], None]:
    """Has `act` called once, before the next backward begins, and leaves nothing; or now, by what is returned."""
    waiting = [act]

    def now() -> None:
        undo()
        while waiting:
            waiting.pop()()

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def _engine_run_backward(*args: Any, **kwargs: Any) -> Any:
            now()
            return original(*args, **kwargs)

        return _engine_run_backward

    undo = patch_engine(wrap)
    return now


def steps_on_stack() -> int:
    """How many optimizer steps this thread is inside of, by torch's own wrappers of `step`, which call the hooks."""
    found = 0
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        found += frame.f_code is _STEP
        frame = frame.f_back
    return found


_BACKWARDS = {
    torch.autograd.backward.__code__: ("grad_tensors", "grad_variables"),
    torch.autograd.grad.__code__: ("grad_outputs",),
}
"""The functions that begin a backward, and the arguments by which they are given gradients of its roots."""


def begins_with_ones() -> bool:
    """Whether the backward that begins was given no gradient, so that torch made ones: no device has to be asked."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        given = _BACKWARDS.get(frame.f_code)
        if given is not None:
            return all(frame.f_locals.get(name) is None for name in given)
        frame = frame.f_back
    return False


def unhooked_step(kind: type) -> Callable[..., Any]:
    """The `step` of a class of optimizers as it is below the wrapper that calls the hooks."""
    step: Callable[..., Any] = kind.step.__wrapped__  # type: ignore[attr-defined]
    return step


def acted_on_by_hooks(optimizer: Any) -> bool:
    """Whether a hook of the program's may act inside this optimizer's step."""
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        return True
    of_all = (optimizers._global_optimizer_pre_hooks, optimizers._global_optimizer_post_hooks)
    return any(getattr(hook, "__module__", "") not in _OURS for hooks in of_all for hook in hooks.values())


def hooks_are_compiled() -> bool:
    """Whether compiled code is guarded by the tables of global optimizer hooks: taking one out has it compiled anew."""
    frames, dynamo = sys.modules.get("torch._C._dynamo.eval_frame"), sys.modules.get("torch._dynamo.convert_frame")
    entries = getattr(frames, "_debug_get_cache_entry_list", None)
    compiled = getattr(getattr(dynamo, "input_codes", None), "seen", ())
    if entries is None:
        return bool(compiled)
    codes = [code for code in (held() for held in compiled) if code is not None]
    guards = (str(getattr(entry, "guard_manager", "_global_optimizer")) for code in codes for entry in entries(code))
    return any("_global_optimizer" in text for text in guards)


_OURS = {__name__.replace("torch_private", name) for name in ("taps.optimizers", "recorder")}
"""The modules whose hooks look, and change nothing."""

_STEP = torch.optim.Optimizer.profile_hook_step(lambda optimizer: None).__code__


def patch_init_process_group(wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Callable[[], None]:
    """Wraps `init_process_group` under each name torch itself calls it by. Returns the undo."""
    original = getattr(torch.distributed, "init_process_group", None)
    if original is None:  # a torch built without distributed
        return lambda: None
    wrapped = functools.wraps(original)(wrap(original))
    holders: list[Any] = [
        module
        for name, module in list(sys.modules.items())
        if name.startswith("torch.distributed") and getattr(module, "init_process_group", None) is original
    ]
    for holder in holders:
        holder.init_process_group = wrapped

    def undo() -> None:
        for holder in holders:
            if holder.init_process_group is wrapped:
                holder.init_process_group = original

    return undo


def process_group(given: Any) -> Any:
    """The process group that an op of c10d or of the functional collectives is given: boxed, by its name, or itself."""
    if isinstance(given, str):
        return torch.distributed.distributed_c10d._resolve_process_group(given)
    own = torch.distributed.ProcessGroup
    return given if isinstance(given, own) else own.unbox(given)


def reduction(given: Any) -> int:
    """How such an op reduces: the number of a ReduceOp.RedOpType, -1 where torch does not tell."""
    if isinstance(given, str):
        kind = getattr(torch.distributed.ReduceOp.RedOpType, given.upper(), None)
        return -1 if kind is None else int(kind)
    return int(given.op()) if given._has_method("op") else -1


def collectives_begun() -> dict[str, int]:
    """Process group -> collectives that this rank has begun in it; 0 or no entry where its backend does not count."""
    counts: dict[str, int] = {}
    try:
        for group in list(torch.distributed.distributed_c10d._world.pg_map):
            backends = {id(b): b for b in map(group._get_backend, group._device_types)}
            counts[group.group_name] = sum(int(b._get_sequence_number_for_group()) for b in backends.values())
    except (AttributeError, RuntimeError, TypeError):
        pass
    return counts


def rendezvous() -> str:
    """What all ranks of one process group have in common and no other group on this machine has: where they met."""
    try:
        store: Any = torch.distributed.distributed_c10d._get_default_store()
        while hasattr(store, "underlying_store"):
            store = store.underlying_store
        return str(getattr(store, "port", None) or getattr(store, "path", None) or "")
    except (AttributeError, RuntimeError, ValueError):
        return os.environ.get("MASTER_PORT", "")


_modes: weakref.WeakSet[Any] = weakref.WeakSet()


def stays_out_of_forks(mode: Any) -> None:
    """A forked DataLoader worker inherits the modes of the thread that forked it; this one is taken out there."""
    _watch_forks()
    _modes.add(mode)


@functools.cache
def _watch_forks() -> None:
    os.register_at_fork(after_in_child=_take_out_in_child)


def _take_out_in_child() -> None:
    for mode in list(_modes):
        take_out(mode)


def insert_at_bottom(mode: Any) -> None:
    """Puts a dispatch mode under all others, so that the user's own `with SomeMode():` blocks still close rightly."""
    stack = pop_all()
    torch._C._push_on_torch_dispatch_stack(mode)
    for other in stack:
        torch._C._push_on_torch_dispatch_stack(other)


def take_out(mode: Any) -> bool:
    """Takes the mode out wherever it is in this thread's stack; False where it is not there."""
    if not any(other is mode for other in _stack()):
        return False
    for other in pop_all():
        if other is not mode:
            torch._C._push_on_torch_dispatch_stack(other)
    return True


def take_out_all(kinds: tuple[type, ...]) -> None:
    """Takes every mode of these classes out of this thread's stack."""
    for mode in _stack() if modes_below() else ():
        if isinstance(mode, kinds):
            take_out(mode)


def _stack() -> list[Any]:
    return [torch._C._get_dispatch_stack_at(i) for i in range(torch._C._len_torch_dispatch_stack())]


def pop_all() -> list[Any]:
    """This thread's modes, bottom first, taken off the stack.

    Infra modes (fake, functional) stay where they are, and a preflight's, below which nothing is a device's.
    """
    modes = []
    for _ in range(torch._C._len_torch_dispatch_stack()):
        top = torch._C._get_dispatch_stack_at(torch._C._len_torch_dispatch_stack() - 1)
        if getattr(top, "_mode_key", None) is not None or getattr(top, "stays_below", False):
            break
        modes.append(torch._C._pop_torch_dispatch_stack(None))
    return modes[::-1]


def unwatched() -> bool:
    """Whether nobody sees what this thread calls: no dispatch mode is on, and no TorchFunctionMode."""
    return modes_below() == 0 and torch._C._len_torch_function_stack() == 0


def push_all(modes: Iterable[Any]) -> None:
    """Puts modes on top of this thread's stack, bottom first."""
    for mode in modes:
        torch._C._push_on_torch_dispatch_stack(mode)


def no_function_modes() -> Any:
    """A context in which no TorchFunctionMode and no tensor subclass of the user sees a call."""
    return torch._C.DisableTorchFunction()


GraphOps = list[tuple[str, Any, int]]
"""For each operation of a compiled graph: its name, the dtype of its result (None for no tensor), and bytes."""

COMPILED_NODE = "CompiledFunctionBackward"
"""The autograd node of a compiled region."""


def region_of(node: Any) -> int:
    """The AOT id of the compiled region whose autograd node this is, -1 where torch does not tell."""
    return int(getattr(getattr(node, "_forward_cls", None), "_aot_id", -1))


def watch_graphs(seen: Callable[[int, str, GraphOps], None]) -> Callable[[], None] | None:
    """Has `seen` called with (AOT id, "forward"|"backward"|"inference", operations) for every graph from now on.

    Wraps the functions with which AOTAutograd logs a graph before it is compiled, and the one that revives a graph
    from its cache; neither graphs, cache keys nor what is returned are touched. None where this torch has no such
    functions. Returns the undo.
    """
    try:
        from torch._functorch._aot_autograd import aot_autograd_result, graph_compile
    except ImportError:
        return None
    result = getattr(aot_autograd_result, "GenericAOTAutogradResult", None)
    wanted = [
        (graph_compile, "_log_fw_bw_graphs"),
        (graph_compile, "_log_inference_graph"),
        (result, "wrap_post_compile"),
    ]
    if any(not hasattr(owner, name) for owner, name in wanted):
        return None

    def of_autograd(args: Any) -> None:
        forward, backward, config = args[0], args[1], args[4]
        seen(config.aot_id, "forward", _graph_ops(forward))
        seen(config.aot_id, "backward", _graph_ops(backward))

    def of_inference(args: Any) -> None:
        seen(args[1].aot_id, "inference", _graph_ops(args[0]))

    def of_cache(args: Any) -> None:
        entry, config = args[0], args[2]
        first = "forward" if entry.aot_backward_graph_str else "inference"
        for stage, text in ((first, entry.aot_forward_graph_str), ("backward", entry.aot_backward_graph_str)):
            if text:
                seen(config.aot_id, stage, _printed_ops(text))

    undo = [
        _wrap(owner, name, wrap)
        for (owner, name), wrap in zip(wanted, (of_autograd, of_inference, of_cache), strict=True)
    ]

    def undo_all() -> None:
        for one in undo:
            one()

    return undo_all


def _wrap(owner: Any, name: str, look: Callable[[Any], None]) -> Callable[[], None]:
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with contextlib.suppress(AttributeError, IndexError, KeyError, TypeError):  # another torch passes others
            look(args)
        return original(*args, **kwargs)

    setattr(owner, name, wrapped)

    def undo() -> None:
        if getattr(owner, name) is wrapped:
            setattr(owner, name, original)

    return undo


def _graph_ops(module: Any) -> GraphOps:
    """The operations of a graph and of the graphs inside it."""
    out: GraphOps = []
    for graph in (inner.graph for inner in module.modules() if isinstance(inner, torch.fx.GraphModule)):
        for node in graph.nodes:
            schema = getattr(node.target, "_schema", None)
            if node.op != "call_function" or schema is None:
                continue
            value = node.meta.get("val")
            value = value[0] if isinstance(value, (list, tuple)) and value else value
            if isinstance(value, Tensor):
                numel = value.numel()
                size = numel * value.dtype.itemsize if isinstance(numel, int) else 0
                out.append((schema.name.partition("::")[2], value.dtype, size))
            else:
                out.append((schema.name.partition("::")[2], None, 0))
    return out


TYPED = r': "(?P<dtype>\w+)\[(?P<shape>[\d, ]*)\][^"]*"'
PRINTED = re.compile(rf"(?P<node>\w+)(?:{TYPED})? = torch\.ops\.\w+\.(?P<name>\w+)")
FIRST_OF_SEVERAL = re.compile(rf"\w+{TYPED} = (?P<node>\w+)\[0\]")


def _printed_ops(text: str) -> GraphOps:
    """The operations of a graph that AOTAutograd's cache keeps as text: `mm: "bf16[4, 8][8, 1]cpu" = torch.ops...`.

    An operation with several results has no dtype of its own there; that of the first is written where it is taken out.
    """
    from torch.utils._dtype_abbrs import dtype_abbrs

    dtypes = {short: dtype for dtype, short in dtype_abbrs.items()}
    first = {found["node"]: found for found in FIRST_OF_SEVERAL.finditer(text)}
    out: GraphOps = []
    for found in PRINTED.finditer(text):
        typed = found if found["dtype"] else first.get(found["node"], found)
        dtype = dtypes.get(typed["dtype"])
        lengths = [int(length) for length in (typed["shape"] or "").split(",") if length.strip()]
        out.append((found["name"], dtype, math.prod(lengths) * dtype.itemsize if dtype is not None else 0))
    return out


def hide_from_dynamo() -> None:
    """Keeps torch.compile from compiling our own functions when user code calls ops after a graph break.

    Covers what of ours is imported by now: call it again after more was.
    """
    skip = _skipping()
    if skip is None:
        return
    package = __name__.rpartition(".runtime.")[0]  # the vocabulary's NamedTuples are made here too
    ours = (f"{package}.runtime", f"{package}.model")
    for module in [module for name, module in list(sys.modules.items()) if name.startswith(ours)]:
        if module.__name__ in _hidden:
            continue
        _hidden.add(module.__name__)
        for code in _codes(module):
            skip(code)


_hidden: set[str] = set()


def _skipping() -> Callable[[CodeType], None] | None:
    """What has Dynamo leave a code object alone, without importing Dynamo; None where this torch has neither name."""
    frames: Any = sys.modules.get("torch._C._dynamo.eval_frame")
    if hasattr(frames, "skip_code"):
        return frames.skip_code  # type: ignore[no-any-return]
    if not hasattr(frames, "set_code_exec_strategy"):  # as torch 2.13 has it
        return None
    # Only the frame itself: what user code it calls stays Dynamo's.
    strategy = frames._FrameExecStrategy(frames._FrameAction.SKIP, frames._FrameAction.DEFAULT)
    return lambda code: frames.set_code_exec_strategy(code, strategy)


def _codes(module: ModuleType) -> Iterator[CodeType]:
    pending: list[Any] = []
    for value in vars(module).values():
        if getattr(value, "__module__", None) != module.__name__:
            continue
        pending += [value, *vars(value).values()] if isinstance(value, type) else [value]
    codes = [getattr(getattr(value, "__func__", value), "__code__", None) for value in pending]
    stack = [code for code in codes if isinstance(code, CodeType)]
    while stack:
        code = stack.pop()
        yield code
        stack += [const for const in code.co_consts if isinstance(const, CodeType)]
