"""Optimizer state, hyperparameters and averaged weights are kept low."""

from mutants.operators import Edit, Operator, family, rules
from mutants.operators.weights import AT_OPTIMIZER

OPERATORS = family(
    "state",
    Operator(
        "moment-built-low",
        rules("301"),
        (
            Edit(
                "state[KEY_] = torch.zeros_like(X_, dtype=torch.float32)",
                "state[KEY_] = torch.zeros_like(X_, dtype=torch.bfloat16)",
            ),
        ),
        near=AT_OPTIMIZER,
    ),
    Operator(
        "moment-built-half",
        rules("301 302"),
        (
            Edit(
                "state[KEY_] = torch.zeros_like(X_, dtype=torch.float32)",
                "state[KEY_] = torch.zeros_like(X_, dtype=torch.float16)",
            ),
        ),
        beside=rules("213"),
        near=AT_OPTIMIZER + r"|eps",
    ),
    Operator(
        "momentum-rounded-after-each-step",
        rules("301"),
        (
            Edit(
                "OPT_.step()",
                "OPT_.step()\nfor slots in OPT_.state.values():\n    for slot, value in slots.items():\n"
                '        if slot != "step":\n            slots[slot] = value.to(torch.bfloat16)',
            ),
        ),
        near=AT_OPTIMIZER,
    ),
    Operator(
        "step-counter-low",
        rules("303"),
        (
            Edit(
                'state["step"] = torch.zeros((), dtype=torch.float32)',
                'state["step"] = torch.zeros((), dtype=torch.bfloat16)',
            ),
        ),
        beside=rules("301 304"),
        near=AT_OPTIMIZER,
    ),
    Operator(
        "learning-rate-low",
        rules("303"),
        (
            Edit(
                "torch.optim.NAME_(X_, lr=NUM_, *REST_)",
                "torch.optim.NAME_(X_, lr=torch.tensor(NUM_, dtype=torch.bfloat16), *REST_)",
            ),
        ),
        near=AT_OPTIMIZER,
    ),
    Operator(
        "betas-low",
        rules("303"),
        (
            Edit(
                "torch.optim.NAME_(X_, betas=(A_, B_), *REST_)",
                "torch.optim.NAME_(X_, betas=(torch.tensor(A_, dtype=torch.bfloat16), "
                "torch.tensor(B_, dtype=torch.bfloat16)), *REST_)",
            ),
        ),
        near=AT_OPTIMIZER,
    ),
    Operator(
        "average-copied-low",
        rules("103"),
        (Edit("EMA_ = copy.deepcopy(MODEL_)", "EMA_ = copy.deepcopy(MODEL_).bfloat16()"),),
        beside=rules("304 402"),
        names={"EMA_": "average|ema|slow|shadow"},
        near=r"lerp_|mul_|momentum|decay",
    ),
    Operator(
        "frozen-average-copied-low",
        rules("103"),
        (
            Edit(
                "EMA_ = copy.deepcopy(MODEL_).requires_grad_(False)",
                "EMA_ = copy.deepcopy(MODEL_).requires_grad_(False).to(torch.bfloat16)",
            ),
        ),
        beside=rules("304 402"),
        names={"EMA_": "average|ema|slow|shadow"},
        near=r"lerp_|mul_|momentum|decay",
    ),
    Operator(
        "shadow-weights-low",
        rules("103"),
        (
            Edit("P_.detach().clone()", "P_.detach().clone().bfloat16()"),
            Edit("A_.lerp_(B_, W_)", "A_.lerp_(B_.bfloat16(), W_)", everywhere=True),
        ),
        beside=rules("304"),
        names={"A_": "shadow|average|slow|ema"},
        near=r"lerp_|mul_",
    ),
    Operator(
        "average-rounded-at-each-update",
        rules("103 304"),
        (Edit("A_.lerp_(B_, W_)", "A_.copy_(torch.lerp(A_, B_, W_).bfloat16())"),),
        names={"A_": "shadow|average|slow|ema"},
    ),
    Operator(
        "average-rebuilt-low",
        rules("103 304"),
        (Edit("A_.data = A_.data * W_ + X_", "A_.data = (A_.data * W_ + X_).bfloat16()"),),
    ),
    Operator(
        "decay-low",
        rules("303 304 103"),
        (Edit("self.decay = X_", "self.decay = torch.tensor(X_, dtype=torch.bfloat16)"),),
        beside=(),
        near=r"lerp_|mul_",
    ),
    Operator(
        "decay-low-at-the-update",
        rules("303"),
        (Edit("A_.mul_(decay)", "A_.mul_(torch.tensor(decay, dtype=torch.bfloat16))"),),
        beside=rules("103 304"),
    ),
)
