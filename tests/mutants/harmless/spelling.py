"""The same program in other words: imports, names, calls, casts."""

import re
from collections.abc import Iterator

from mutants.operators import Edit, Files, Operator, family


def same(name: str, *edits: Edit) -> Operator:
    return Operator(name, (), edits)


def torch_by_another_name(files: Files) -> Iterator[Files]:
    """`import torch as th`, in every file that imports it alone."""
    changed = {}
    for name, text in files.items():
        if re.search(r"(?m)^import torch$", text):
            text = re.sub(r"(?m)^import torch$", "import torch as th", text)
            text = re.sub(r"(?m)^(?!import|from)(.*)", lambda line: re.sub(r"\btorch\.", "th.", line[1]), text)
        changed[name] = text
    yield changed


OPERATORS = family(
    "spelling",
    same("functional-by-another-name", Edit("import torch.nn.functional as F", "from torch.nn import functional as F")),
    same("nn-by-import-as", Edit("from torch import nn", "import torch.nn as nn")),
    Operator("torch-by-another-name", (), transform=torch_by_another_name),
    same("float-by-to", Edit("X_.float()", "X_.to(torch.float32)", everywhere=True)),
    same("float-by-keyword", Edit("X_.float()", "X_.to(dtype=torch.float32)")),
    same("float-by-type", Edit("X_.float()", "X_.type(torch.float32)")),
    same("bfloat16-by-getattr", Edit("torch.bfloat16", 'getattr(torch, "bfloat16")')),
    same("float16-is-half", Edit("torch.float16", "torch.half", everywhere=True)),
    same("backward-as-a-function", Edit("LOSS_.backward()", "torch.autograd.backward(LOSS_)")),
    same("zero-grad-to-zero", Edit("OPT_.zero_grad()", "OPT_.zero_grad(set_to_none=False)")),
    same("cross-entropy-as-a-module", Edit("F.cross_entropy(X_, Y_)", "nn.CrossEntropyLoss()(X_, Y_)")),
    same("softmax-as-a-method", Edit("F.softmax(X_, dim=-1)", "X_.softmax(dim=-1)")),
    same(
        "autocast-by-torch-amp",
        Edit('torch.autocast("cpu", dtype=T_)', 'torch.amp.autocast(device_type="cpu", dtype=T_)'),
    ),
    same(
        "autocast-made-before",
        Edit("with torch.autocast(*A_):\n    BODY_", "amp = torch.autocast(*A_)\nwith amp:\n    BODY_"),
    ),
    same("model-annotated", Edit("MODEL_ = X_", "MODEL_: nn.Module = X_")),
    same(
        "parameters-as-a-list", Edit("CTOR_(MODEL_.parameters(), *REST_)", "CTOR_(list(MODEL_.parameters()), *REST_)")
    ),
    same(
        "parameters-as-a-group",
        Edit(
            "CTOR_(MODEL_.parameters(), lr=R_, *REST_)", 'CTOR_([{"params": list(MODEL_.parameters())}], lr=R_, *REST_)'
        ),
    ),
    same(
        "parameters-that-are-trained",
        Edit(
            "CTOR_(MODEL_.parameters(), lr=R_, *REST_)",
            "CTOR_([p for p in MODEL_.parameters() if p.requires_grad], lr=R_, *REST_)",
        ),
    ),
    same("sum-out-of-place", Edit("A_ += B_", "A_ = A_ + B_")),
    same("average-out-of-place", Edit("A_.lerp_(B_, W_)", "A_.copy_(A_ + (B_ - A_) * W_)")),
    same("average-by-multiply-and-add", Edit("A_.lerp_(B_, W_)", "A_.mul_(1 - (W_)).add_(B_, alpha=W_)")),
    same("moment-out-of-place", Edit("A_.mul_(B_).add_(C_, alpha=D_)", "A_.copy_(A_ * B_ + C_ * (D_))")),
    same("optimizer-foreach", Edit("torch.optim.NAME_(X_, *REST_)", "torch.optim.NAME_(X_, *REST_, foreach=True)")),
    same("optimizer-fused", Edit("torch.optim.AdamW(X_, *REST_)", "torch.optim.AdamW(X_, *REST_, fused=True)")),
)
