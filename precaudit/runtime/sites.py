"""Finds the user's own line: the innermost frame outside torch, site-packages, the standard library and precaudit."""

from __future__ import annotations

import ast
import contextlib
import functools
import linecache
import os
import sys
import sysconfig
from collections.abc import Iterator
from itertools import islice
from types import CodeType, FrameType
from typing import Any

import torch

from ..model.vocabulary import Site

_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_LIBRARY = tuple(
    folder + os.sep
    for folder in {sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib")} | {os.path.dirname(os.__file__)}
)
_TORCH = os.path.dirname(torch.__file__) + os.sep
_TRANSPARENT = frozenset({"_tensor.py", "_ops.py", "_contextlib.py", "_disable_dynamo.py"})
_is_user: dict[str, bool] = {}


def is_user_file(filename: str) -> bool:
    """Whether a file is the user's own code. A notebook cell is, and the script that is run, even one out of a wheel;

    `<string>` and frozen modules are not.
    """
    known = _is_user.get(filename)
    if known is None:
        real = os.path.abspath(filename) if not filename.startswith("<") else filename
        known = _is_user[filename] = not (
            filename.startswith(("<frozen", "<eval_with_key>"))  # the second: code that torch.fx has made
            or filename == "<string>"
            or f"{os.sep}site-packages{os.sep}" in real
            or f"{os.sep}dist-packages{os.sep}" in real
            or real.startswith(_LIBRARY)
            or is_ours(real)
        ) or _is_main(filename)
    return known


def _is_main(filename: str) -> bool:
    """Whether this is the script that Python was told to run: `python -m trl.scripts.sft` runs one out of a wheel."""
    return filename == getattr(sys.modules.get("__main__"), "__file__", None) and not is_ours(filename)


def is_ours(filename: str) -> bool:
    """Whether a file belongs to precaudit's part of the traced process."""
    return filename.startswith(_OURS)


def user_frame(depth: int = 1) -> FrameType | None:
    """The innermost frame of the user's own code, seen from the caller's caller."""
    frame: FrameType | None = sys._getframe(depth)
    known = _is_user.get  # a call for each frame would cost as much as the rest of a traced operation
    while frame is not None:
        filename = frame.f_code.co_filename
        found = known(filename)
        if found or (found is None and is_user_file(filename)):
            return frame
        frame = frame.f_back
    return None


def user_site(depth: int = 1) -> Site | None:
    """The Site of `user_frame`, with the library's innermost line below it; columns from Python 3.11 on."""
    frame: FrameType | None = sys._getframe(depth)
    inside: FrameType | None = None
    while frame is not None and not is_user_file(frame.f_code.co_filename):
        if inside is None and _is_package(frame.f_code.co_filename):
            inside = frame
        frame = frame.f_back
    if frame is None:
        return None
    site = site_of(frame)
    return site if inside is None else site._replace(library=_library_line(inside))


@functools.cache
def _is_package(filename: str) -> bool:
    """Whether this file belongs to an installed package other than torch."""
    return f"-packages{os.sep}" in filename and not filename.startswith((_OURS, _TORCH))


def _library_line(frame: FrameType) -> str:
    """ "transformers/trainer.py:1271" for a frame of an installed package."""
    package = frame.f_code.co_filename.rpartition("-packages" + os.sep)[2]
    return f"{package.replace(os.sep, '/')}:{frame.f_lineno}"


def site_of(frame: FrameType) -> Site:
    """Where this frame stands now."""
    code, instruction = frame.f_code, frame.f_lasti
    known = _sites.get((id(code), instruction))
    if known is None:
        known = _sites[id(code), instruction] = (_site_at(code, instruction), code)
    return known[0]


_sites: dict[tuple[int, int], tuple[Site, CodeType]] = {}
"""Code object, by id, and instruction -> its place. Code is kept alive here, and compares equal across files."""


def _site_at(code: CodeType, instruction: int) -> Site:
    """The place of one instruction, found by counting through the code's positions."""
    name = getattr(code, "co_qualname", code.co_name)
    line, column, end_line, end_column = _line_at(code, instruction), 0, 0, 0
    if hasattr(code, "co_positions"):
        found = next(islice(code.co_positions(), instruction // 2, None), None)
        if found and found[0]:
            line, end_line = found[0], found[1] or found[0]
            column, end_column = (found[2] or 0) + 1, (found[3] or 0) + 1
    return Site(code.co_filename, line, column, end_line, end_column, name)


def _line_at(code: CodeType, instruction: int) -> int:
    """The line of an instruction where Python 3.10 knows no columns."""
    for start, end, line in code.co_lines():
        if start <= instruction < end and line:
            return line
    return code.co_firstlineno


def enclosing_module(module_class: type, depth: int = 1) -> Any:
    """The innermost `self` on the stack that is an nn.Module: the module whose forward is running."""
    frame: FrameType | None = sys._getframe(depth)
    while frame is not None:
        code = frame.f_code
        if code.co_argcount and code.co_varnames[0] == "self":
            candidate = frame.f_locals.get("self")
            if isinstance(candidate, module_class):
                return candidate
        frame = frame.f_back
    return None


def running_module(depth: int = 1) -> Any:
    """The innermost module that is being called; None outside of every call.

    Of no other frame are the locals read: before Python 3.13 that keeps alive what a function drops meanwhile.
    """
    frame: FrameType | None = sys._getframe(depth)
    while frame is not None:
        if frame.f_code is _CALL:
            return frame.f_locals.get("self")
        frame = frame.f_back
    return None


_CALL = torch.nn.Module._call_impl.__code__


def selves_on_stack(depth: int = 1) -> Iterator[Any]:
    """The `self` of every method on the stack, innermost first, torch's and our own left out."""
    frame: FrameType | None = sys._getframe(depth)
    while frame is not None:
        code = frame.f_code
        if code.co_argcount and code.co_varnames[0] == "self" and not code.co_filename.startswith((_OURS, _TORCH)):
            yield frame.f_locals.get("self")
        frame = frame.f_back


def in_library(name: str, depth: int = 1) -> bool:
    """Whether the op was called by a function of this library itself, as F.normalize calls clamp_min."""
    frame: FrameType | None = sys._getframe(depth)
    while frame is not None:
        filename = frame.f_code.co_filename
        if not is_ours(filename) and os.path.basename(filename) not in _TRANSPARENT:
            return f"{os.sep}{name}{os.sep}" in filename and not is_user_file(filename)
        frame = frame.f_back
    return False


def entered_by_library(depth: int = 1) -> bool:
    """Whether the `with` that enters a context now stands in an installed package: a trainer's, around the user's step.

    What a package offers to the user's own `with` is skipped: generators that contextlib runs, `__enter__` methods.
    """
    frame: FrameType | None = sys._getframe(depth)
    while frame is not None:
        code, back = frame.f_code, frame.f_back
        ran = back is not None and back.f_code.co_filename == contextlib.__file__ and back.f_code.co_name == "__enter__"
        transparent = is_ours(code.co_filename) or code.co_filename.startswith((_TORCH, contextlib.__file__))
        if not (ran or transparent or code.co_name == "__enter__"):
            return not is_user_file(code.co_filename)
        frame = back
    return False


def in_user_hook(depth: int = 1) -> bool:
    """Whether the user's own code called the op in progress: inside backward, one of its hooks did."""
    frame: FrameType | None = sys._getframe(depth)
    while frame is not None:
        called = _calls(frame.f_code.co_filename)
        if called is not None:
            return called
        frame = frame.f_back
    return False


@functools.cache
def _calls(filename: str) -> bool | None:
    """Whether an op that this file calls is called by the user; None where it only hands the call on."""
    if is_ours(filename) or os.path.basename(filename) in _TRANSPARENT:
        return None
    return is_user_file(filename)


def chooses_device(site: Site | None) -> bool:
    """Whether the source file at this site names an accelerator."""
    return site is not None and bool(site.path) and _devices_of(site.path)[0]


def autocasts_cpu_alone(site: Site | None) -> bool:
    """Whether this line is an autocast for the literal "cpu"."""
    return site is not None and bool(site.path) and site.line in _devices_of(site.path)[1]


@functools.cache
def _devices_of(path: str) -> tuple[bool, frozenset[int]]:
    """Whether a file's code names an accelerator, and the lines of its autocast("cpu") calls."""
    try:
        tree = ast.parse("".join(linecache.getlines(path)))
    except (SyntaxError, ValueError, RecursionError):
        return False, frozenset()
    anywhere, literal = False, set[int]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            # autocast("cpu") beside torch.cuda.manual_seed is no choice of device; asking what there is, is one.
            anywhere |= node.attr in _CHOICES or (
                node.attr == "is_available" and _names(node.value) & _ACCELERATORS != set()
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            anywhere |= node.value.partition(":")[0] in _ACCELERATORS
        elif isinstance(node, ast.Call) and "autocast" in _names(node.func):
            given = [*node.args[:1], *(word.value for word in node.keywords if word.arg == "device_type")]
            if any(isinstance(one, ast.Constant) and one.value == "cpu" for one in given):
                literal |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return anywhere, frozenset(literal)


_ACCELERATORS = frozenset({"cuda", "mps", "xpu", "hpu", "npu"})
_CHOICES = frozenset({"accelerator", "get_default_device", "current_accelerator"})


def _names(node: ast.AST) -> set[str]:
    """The names of a dotted expression: torch.cuda gives both."""
    return {
        part.attr if isinstance(part, ast.Attribute) else part.id
        for part in ast.walk(node)
        if isinstance(part, (ast.Attribute, ast.Name))
    }
