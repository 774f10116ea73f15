"""Autocast is widened over backward and the step, nested, left without a dtype, or fed with casts by hand."""

from mutants.operators import Edit, Operator, family, rules

OPERATORS = family(
    "autocast",
    Operator(
        "backward-under-autocast",
        rules("701"),
        (
            Edit(
                "with torch.autocast(*A_):\n    BODY_\nGAP_\nLOSS_.backward()",
                "with torch.autocast(*A_):\n    BODY_\n    GAP_\n    LOSS_.backward()",
            ),
        ),
        beside=rules("401 404"),
    ),
    Operator(
        "scaled-backward-under-autocast",
        rules("701"),
        (
            Edit(
                "with torch.autocast(*A_):\n    BODY_\nGAP_\nSCALER_.scale(LOSS_).backward()",
                "with torch.autocast(*A_):\n    BODY_\n    GAP_\n    SCALER_.scale(LOSS_).backward()",
            ),
        ),
        beside=rules("401 404"),
    ),
    Operator(
        "step-under-autocast",
        rules("305"),
        (Edit("OPT_.step()", 'with torch.autocast("cpu", dtype=torch.bfloat16):\n    OPT_.step()'),),
    ),
    Operator(
        "whole-step-under-autocast",
        rules("305 701"),
        (
            Edit(
                "with torch.autocast(*A_):\n    BODY_\nGAP_\nOPT_.step()",
                "with torch.autocast(*A_):\n    BODY_\n    GAP_\n    OPT_.step()",
            ),
        ),
        beside=rules("401 404 209"),
    ),
    Operator(
        "autocast-without-dtype",
        rules("704 206"),
        (Edit('torch.autocast("cpu", dtype=torch.float16)', 'torch.autocast("cpu")'),),
        beside=rules("201"),
        near=r"GradScaler\(|autocast",
    ),
    Operator(
        "inputs-halved-under-autocast",
        rules("702"),
        (
            Edit(
                "with torch.autocast(*A_):\n    NAME_ = MODEL_(X_)",
                "with torch.autocast(*A_):\n    NAME_ = MODEL_(X_.half())",
            ),
        ),
        witnesses=("check",),
    ),
    Operator(
        "no-grad-pass-in-the-same-region",
        rules("708"),
        (
            Edit(
                "with torch.autocast(*A_):\n    NAME_ = MODEL_(X_)",
                "with torch.autocast(*A_):\n    with torch.no_grad():\n        MODEL_(X_)\n    NAME_ = MODEL_(X_)",
            ),
        ),
    ),
    Operator(
        "disabled-region-without-upcast",
        rules("703 414 412 404"),
        (Edit("F.linear(X_.float(), W_.float())", "F.linear(X_.bfloat16(), W_.bfloat16())"),),
        beside=rules("101 301"),
    ),
)
