# ruff: noqa: E501
"""Fixes change only what they mend, and a fixed file is clean when checked again."""

from __future__ import annotations

import pytest

from precaudit.settings import Settings
from precaudit.static.files.discovery import Found
from precaudit.static.files.fixes import fix_text

CASES = {
    "deprecated autocast": (
        "import torch\n\n\ndef f(m, x):\n    with torch.cuda.amp.autocast(dtype=torch.bfloat16):  # kept\n        return m(x)\n",
        'torch.amp.autocast("cuda", dtype=torch.bfloat16):  # kept',
    ),
    "clip before unscale": (
        "import torch\n\n\ndef f(m, o, s: torch.amp.GradScaler, xs):\n    s = torch.amp.GradScaler('cuda')\n    for x in xs:\n"
        "        with torch.autocast('cuda', dtype=torch.float16):\n            loss = m(x)\n        s.scale(loss).backward()\n"
        "        torch.nn.utils.clip_grad_norm_(m.parameters(), 1.0)\n        s.step(o)\n        s.update()\n",
        "        s.unscale_(o)\n        torch.nn.utils.clip_grad_norm_(m.parameters(), 1.0)\n",
    ),
    "missing update": (
        "import torch\n\n\ndef f(m, o, xs):\n    s = torch.amp.GradScaler('cuda')\n    for x in xs:\n"
        "        with torch.autocast('cuda', dtype=torch.float16):\n            loss = m(x)\n        s.scale(loss).backward()\n"
        "        s.step(o)\n        o.zero_grad()\n",
        "        s.step(o)\n        s.update()\n",
    ),
    "low cross entropy": (
        "import torch\nimport torch.nn.functional as F\n\n\ndef f(xs):\n    m = torch.nn.Linear(4, 4).bfloat16()\n"
        "    for x, y in xs:\n        loss = F.cross_entropy(m(x) / 2, y)\n        loss.backward()\n",
        "F.cross_entropy((m(x) / 2).float(), y)",
    ),
    "overflowing mask": (
        "import torch\n\n\ndef f(x, mask):\n    h = x.half()\n    return h.masked_fill(mask, -1e9)\n",
        "h.masked_fill(mask, torch.finfo(h.dtype).min)",
    ),
    "needless scaling": (
        "import torch\n\n\ndef f(o, xs):\n    m = torch.nn.Linear(4, 4)\n    s = torch.amp.GradScaler('cuda')\n    for x in xs:\n"
        "        with torch.autocast('cuda', dtype=torch.bfloat16):\n            loss = m(x).float().mean()\n"
        "        s.scale(loss).backward()\n        s.step(o)\n        s.update()\n",
        "torch.amp.GradScaler('cuda', enabled=False)",
    ),
    "partial sums in float16": (
        "import torch\n\ntorch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = True  # kept\n\n\ndef f(m, s, xs):\n"
        "    for x in xs:\n        with torch.autocast('cuda', dtype=torch.float16):\n            loss = m(x)\n"
        "        s.scale(loss).backward()\n",
        "allow_fp16_reduced_precision_reduction = False  # kept",
    ),
    "reduce dtype": (
        "import torch\nfrom torch.distributed.fsdp import MixedPrecision\n\nmp = MixedPrecision(param_dtype=torch.bfloat16)\n",
        "MixedPrecision(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_safe_fix_mends_the_finding_and_nothing_else(name: str) -> None:
    text, wanted = CASES[name]
    item = Found("/nowhere/x.py", "x.py")
    fixed, count = fix_text(item, text, Settings(), unsafe=False)
    assert count == 1
    assert wanted in fixed
    assert fix_text(item, fixed, Settings(), unsafe=False) == (fixed, 0)


def test_a_deprecated_import_is_mended_with_all_its_calls() -> None:
    text = (
        "import torch\nfrom torch.cuda.amp import GradScaler, autocast\n\n\ndef f(m, xs):\n    scaler = GradScaler()\n"
        "    with autocast(dtype=torch.float16):\n        return m(xs), scaler\n"
    )
    fixed, _ = fix_text(Found("/nowhere/x.py", "x.py"), text, Settings(), unsafe=False)
    assert "from torch.amp import GradScaler, autocast" in fixed
    assert 'GradScaler("cuda")' in fixed
    assert 'autocast("cuda", dtype=torch.float16)' in fixed


def test_an_unsafe_fix_waits_to_be_asked_for() -> None:
    text = (
        "import torch\n\n\ndef route(xs):\n    gate = torch.nn.Linear(4, 4).bfloat16()\n    for x in xs:\n"
        "        p = torch.softmax(gate(x), dim=-1)\n        print(p.topk(2))\n"
    )
    item = Found("/nowhere/x.py", "x.py")
    assert fix_text(item, text, Settings(), unsafe=False) == (text, 0)
    assert "torch.softmax(gate(x), dim=-1, dtype=torch.float32)" in fix_text(item, text, Settings(), unsafe=True)[0]
