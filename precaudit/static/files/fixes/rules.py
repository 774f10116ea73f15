"""The fixes, by rule: each makes the edits for one finding, or none where it is not certain."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import libcst as cst

from precaudit.model.wire import Finding
from precaudit.static.files.fixes.edits import Edit, Tree
from precaudit.static.language.statements import dotted


class Fix(NamedTuple):
    """`unsafe`: it may change what the code means beyond the mistake. `same`: it is the same call, spelled anew."""

    make: Callable[[Finding, Tree], list[Edit]]
    unsafe: bool = False
    same: bool = False


def _call(finding: Finding, tree: Tree) -> cst.Call | None:
    return tree.call_at(finding.line or 0, finding.column or 0)


def _deprecated_api(finding: Finding, tree: Tree) -> list[Edit]:
    """torch.cuda.amp.autocast(...) becomes torch.amp.autocast("cuda", ...)."""
    call = _call(finding, tree)
    if call is None:
        return []
    if isinstance(call.func, cst.Name):
        return _deprecated_import(call.func.value, tree)
    name = dotted(call.func)
    for device in ("cuda", "cpu"):
        if name in (f"torch.{device}.amp.autocast", f"torch.{device}.amp.GradScaler"):
            if any(arg.keyword is None for arg in call.args):
                return []
            start, end = tree.span(call.func)
            opening = tree.text.index("(", end) + 1
            comma = ", " if call.args else ""
            return [
                Edit(start, end, f"torch.amp.{name.rsplit('.', 1)[1]}"),
                Edit(opening, opening, f'"{device}"{comma}'),
            ]
    return []


def _deprecated_import(name: str, tree: Tree) -> list[Edit]:
    """from torch.cuda.amp import … becomes from torch.amp import …, and every call of what it names gets its device."""
    for device in ("cuda", "cpu"):
        for statement in tree.nodes(cst.ImportFrom):
            names = statement.names
            if dotted(statement.module) != f"torch.{device}.amp" or isinstance(names, cst.ImportStar):
                continue
            bound = {dotted(alias.asname.name) if alias.asname else dotted(alias.name) for alias in names}
            if name not in bound or not {dotted(alias.name) for alias in names} <= {"autocast", "GradScaler"}:
                continue
            calls = [c for c in tree.nodes(cst.Call) if dotted(c.func) in bound]
            uses = [n for n in tree.nodes(cst.Name) if n.value in bound]
            if len(uses) != len(calls) + len(names) or any(arg.keyword is None for c in calls for arg in c.args):
                return []
            start, end = tree.span(statement.module)
            edits = [Edit(start, end, "torch.amp")]
            for call in calls:
                opening = tree.text.index("(", tree.span(call.func)[1]) + 1
                edits.append(Edit(opening, opening, f'"{device}"{", " if call.args else ""}'))
            return edits
    return []


def _without_scaling(finding: Finding, tree: Tree) -> list[Edit]:
    """GradScaler(...) under bfloat16 gets enabled=False: every call of it stays, and does nothing."""
    call = _call(finding, tree)
    if call is None or any(a.star or (a.keyword is not None and a.keyword.value == "enabled") for a in call.args):
        return []
    if not call.args:
        opening = tree.text.index("(", tree.span(call.func)[1]) + 1
        return [Edit(opening, opening, "enabled=False")]
    _, end = tree.span(call.args[-1].value)
    return [Edit(end, end, ", enabled=False")]


def _flag_off(finding: Finding, tree: Tree) -> list[Edit]:
    """… .allow_fp16_reduced_precision_reduction = True becomes False."""
    for node in tree.nodes(cst.Assign):
        target = node.targets[0].target
        on = isinstance(node.value, cst.Name) and node.value.value == "True"
        flag = isinstance(target, cst.Attribute) and target.attr.value == "allow_fp16_reduced_precision_reduction"
        if on and flag and tree.span(target)[0] == tree.offset(finding.line or 1, (finding.column or 1) - 1):
            start, end = tree.span(node.value)
            return [Edit(start, end, "False")]
    return []


def _float32_storage(finding: Finding, tree: Tree) -> list[Edit]:
    """zeros(…, dtype=torch.bfloat16) becomes zeros(…, dtype=torch.float32), for storage that must last."""
    for call in tree.calls_on(finding.line or 0):
        for arg in call.args:
            low = dotted(arg.value) in ("torch.bfloat16", "torch.float16", "torch.half")
            if arg.keyword is not None and arg.keyword.value == "dtype" and low:
                start, end = tree.span(arg.value)
                return [Edit(start, end, "torch.float32")]
    return []


def _unscale_before_clip(finding: Finding, tree: Tree) -> list[Edit]:
    """Puts scaler.unscale_(optimizer) before the clipping, in the block that holds both it and scaler.step."""
    call = _call(finding, tree)
    if call is None or finding.cause is None:
        return []
    steps = [c for c in tree.calls_on(finding.cause.line) if dotted(c.func).endswith(".step") and len(c.args) == 1]
    clip = tree.statement_around(call)
    step = tree.statement_around(steps[0]) if steps else None
    if clip is None or step is None or tree.indentation(clip) != tree.indentation(step):
        return []
    scaler = dotted(steps[0].func).removesuffix(".step")
    line = f"{tree.indentation(clip)}{scaler}.unscale_({tree.code(steps[0].args[0])}){tree.newline()}"
    at = tree.line_start(clip)
    return [Edit(at, at, line)]


def _update_after_step(finding: Finding, tree: Tree) -> list[Edit]:
    """Puts scaler.update() after the only scaler.step of the file."""
    call = _call(finding, tree)
    statement = tree.statement_around(call) if call is not None else None
    if call is None or statement is None or not dotted(call.func).endswith(".step"):
        return []
    scaler = dotted(call.func).removesuffix(".step")
    if tree.text.count(f"{scaler}.step(") != 1:
        return []
    at = tree.line_end(statement)
    lead = "" if tree.text[:at].endswith(("\n", "\r")) else tree.newline()
    return [Edit(at, at, f"{lead}{tree.indentation(statement)}{scaler}.update(){tree.newline()}")]


def _upcast_loss_input(finding: Finding, tree: Tree) -> list[Edit]:
    """cross_entropy(logits, …) becomes cross_entropy(logits.float(), …)."""
    call = _call(finding, tree)
    if call is None or not call.args or call.args[0].star or call.args[0].keyword is not None:
        return []
    if "cross_entropy" not in dotted(call.func) and not finding.message.startswith("cross_entropy gets"):
        return []
    return [_float(call.args[0].value, tree)]


def _float(node: cst.BaseExpression, tree: Tree) -> Edit:
    start, end = tree.span(node)
    code = tree.code(node)
    plain = isinstance(node, (cst.Name, cst.Attribute, cst.Call, cst.Subscript))
    return Edit(start, end, f"{code}.float()" if plain else f"({code}).float()")


def _finfo_for_literal(finding: Finding, tree: Tree) -> list[Edit]:
    """x.masked_fill(mask, -1e9) becomes x.masked_fill(mask, torch.finfo(x.dtype).min)."""
    call = _call(finding, tree)
    if call is None or not isinstance(call.func, cst.Attribute) or "import torch" not in tree.text:
        return []
    if (
        call.func.attr.value not in ("masked_fill", "masked_fill_")
        or not dotted(call.func.value)
        or len(call.args) != 2
    ):
        return []
    literal = call.args[1].value
    if not isinstance(literal, cst.UnaryOperation) or not isinstance(literal.operator, cst.Minus):
        return []
    start, end = tree.span(literal)
    return [Edit(start, end, f"torch.finfo({dotted(call.func.value)}.dtype).min")]


def _reduce_in_float32(finding: Finding, tree: Tree) -> list[Edit]:
    """MixedPrecision(param_dtype=…) gets reduce_dtype=torch.float32 where it has none."""
    call = _call(finding, tree)
    if call is None or any(a.keyword is None or a.star for a in call.args) or "import torch" not in tree.text:
        return []
    keywords = {arg.keyword.value for arg in call.args if arg.keyword is not None}
    if "param_dtype" not in keywords or "reduce_dtype" in keywords:
        return []
    _, end = tree.span(call.args[-1].value)
    return [Edit(end, end, ", reduce_dtype=torch.float32")]


def _softmax_in_float32(finding: Finding, tree: Tree) -> list[Edit]:
    """softmax(x, dim) gets dtype=torch.float32; its result is float32 then."""
    call = _call(finding, tree)
    if call is None or not call.args or not dotted(call.func).endswith("softmax") or "import torch" not in tree.text:
        return _upcast_loss_input(finding, tree)
    if any(arg.keyword is not None and arg.keyword.value == "dtype" for arg in call.args):
        return []
    _, end = tree.span(call.args[-1].value)
    return [Edit(end, end, ", dtype=torch.float32")]


FIXES: dict[str, Fix] = {
    "PA206": Fix(_without_scaling),
    "PA208": Fix(_float32_storage, unsafe=True),
    "PA303": Fix(_float32_storage, unsafe=True),
    "PA304": Fix(_float32_storage, unsafe=True),
    "PA408": Fix(_float32_storage, unsafe=True),
    "PA709": Fix(_flag_off),
    "PA202": Fix(_unscale_before_clip),
    "PA204": Fix(_update_after_step),
    "PA401": Fix(_upcast_loss_input),
    "PA404": Fix(_softmax_in_float32, unsafe=True),
    "PA406": Fix(_finfo_for_literal),
    "PA501": Fix(_reduce_in_float32),
    "PA707": Fix(_deprecated_api, same=True),
}
