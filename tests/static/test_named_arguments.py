"""A source says the same when its calls of torch give their arguments by name."""

from __future__ import annotations

from pathlib import Path

import libcst as cst
import pytest

from precaudit.static.analyze import analyze
from precaudit.static.source import Source

HERE = Path(__file__).parent
NAMES = {
    function: names.split()
    for functions, names in {
        "cross_entropy mse_loss nll_loss l1_loss binary_cross_entropy kl_div": "input target",
        "binary_cross_entropy_with_logits": "input target",
        "SGD Adam AdamW RMSprop Adagrad": "params",
        "clip_grad_norm_": "parameters max_norm",
        "clip_grad_value_": "parameters clip_value",
        "scale": "outputs",
        "unscale_": "optimizer",
        "autocast": "device_type",
        "GradScaler": "device",
        "add_ sub_ mul_ div_": "other",
        "masked_fill masked_fill_": "mask value",
        "lerp_": "end weight",
        "copy_": "src",
        "addcmul_ addcdiv_": "tensor1 tensor2",
        "zeros_like ones_like randn_like empty_like": "input",
        "full_like": "input fill_value",
        "tensor Parameter": "data",
        "Linear": "in_features out_features",
        "LayerNorm": "normalized_shape",
        "Embedding": "num_embeddings embedding_dim",
        "ModuleList": "modules",
        "AveragedModel compile": "model",
        "load_state_dict": "state_dict",
        "register_buffer": "name tensor",
        "deepcopy": "x",
        "save": "obj f",
        "set_default_dtype": "d",
    }.items()
    for function in functions.split()
}
"""Function or method -> what torch calls its first parameters."""
TAKE_INPUT = "softmax log_softmax logsumexp exp log sqrt sigmoid sum mean norm var std clamp cumsum pow dropout".split()
"""Functions of `torch` and `F`."""


class Namer(cst.CSTTransformer):
    """Gives every positional argument of these calls its name."""

    def leave_Call(self, original_node: cst.Call, updated_node: cst.Call) -> cst.Call:
        names = self._names(updated_node)
        plain = all(not arg.star and not isinstance(arg.value, cst.GeneratorExp) for arg in updated_node.args)
        positional = [arg for arg in updated_node.args if arg.keyword is None]
        if not plain or len(positional) > len(names):
            return updated_node
        tight = cst.AssignEqual(cst.SimpleWhitespace(""), cst.SimpleWhitespace(""))
        named = [arg.with_changes(keyword=cst.Name(n), equal=tight) for arg, n in zip(positional, names, strict=False)]
        return updated_node.with_changes(args=[*named, *updated_node.args[len(positional) :]])

    @staticmethod
    def _names(node: cst.Call) -> list[str]:
        if isinstance(node.func, cst.Name):
            return NAMES.get(node.func.value, [])
        if not isinstance(node.func, cst.Attribute):
            return []
        name, owner = node.func.attr.value, node.func.value
        if isinstance(owner, cst.Name) and owner.value in ("torch", "F") and name in TAKE_INPUT:
            return ["input", "dim"] if name in ("softmax", "log_softmax", "logsumexp") else ["input"]
        if name == "step" and isinstance(owner, cst.Name) and "scaler" in owner.value:
            return ["optimizer"]
        return NAMES.get(name, [])


def facts(text: str) -> list[tuple[str, str, str]]:
    return sorted((fact.kind.value, fact.role or "", fact.dtype) for fact in analyze(Source("x.py", text))[0])


SOURCES = [*HERE.glob("snippets/*.py"), *HERE.parents[1].glob("fixtures/**/*.py")]


def named(text: str) -> str:
    return cst.parse_module(text).visit(Namer()).code


def test_the_arguments_get_their_names() -> None:
    text = "scaler.scale(loss)\nscaler.step(optimizer)\nF.softmax(x, -1, dtype=d)\nstep(x)\nSGD(p for p in w)\n"
    assert named(text) == (
        "scaler.scale(outputs=loss)\nscaler.step(optimizer=optimizer)\n"
        "F.softmax(input=x, dim=-1, dtype=d)\nstep(x)\nSGD(p for p in w)\n"
    )


@pytest.mark.parametrize("folder", sorted({path.parent.name for path in SOURCES}))
def test_named_arguments_change_nothing(folder: str) -> None:
    for path in SOURCES:
        if path.parent.name == folder and "import torch" in path.read_text():
            text = path.read_text()
            assert facts(named(text)) == facts(text), path
