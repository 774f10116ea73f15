"""Things done beside training: logging, exports, checks, inference copies."""

from mutants.operators import Edit, Operator, family

COPY = Edit("import torch", "import copy\n\nimport torch")
SUMS = "float(sum(p.grad.norm() for p in MODEL_.parameters() if p.grad is not None))"


def after_step(name: str, text: str, *more: Edit) -> Operator:
    return Operator(name, (), (Edit("OPT_.step()", f"OPT_.step()\n{text}"), *more))


OPERATORS = family(
    "beside",
    after_step("gradient-norm-logged", f'print("norm", {SUMS})'),
    after_step("inference-copy-in-bfloat16", "snapshot = copy.deepcopy(MODEL_).to(torch.bfloat16).eval()", COPY),
    after_step("inference-copy-in-half", "snapshot = copy.deepcopy(MODEL_).half().requires_grad_(False)", COPY),
    after_step(
        "export-of-half-weights", "exported = {name: value.half() for name, value in MODEL_.state_dict().items()}"
    ),
    after_step(
        "largest-weight-logged",
        'print("largest", max(p.detach().bfloat16().abs().max().item() for p in MODEL_.parameters()))',
    ),
    after_step(
        "state-looked-at",
        "held = sum(v.float().sum() for s in OPT_.state.values() for v in s.values() if torch.is_tensor(v))",
    ),
    Operator("loss-must-be-finite", (), (Edit("LOSS_.backward()", "assert torch.isfinite(LOSS_)\nLOSS_.backward()"),)),
    Operator("loss-times-one", (), (Edit("LOSS_.backward()", "(LOSS_ * 1.0).backward()"),)),
    Operator(
        "loss-logged-in-half",
        (),
        (Edit("LOSS_.backward()", 'LOSS_.backward()\nprint("half", LOSS_.detach().half().item())'),),
    ),
    Operator("forward-hook", (), (Edit("MODEL_ = X_", "MODEL_ = X_\nMODEL_.register_forward_hook(lambda *_: None)"),)),
    Operator("model-in-float32", (), (Edit("MODEL_ = X_", "MODEL_ = X_.to(torch.float32)"),)),
    Operator(
        "wider-total", (), (Edit("torch.zeros((), dtype=torch.float32)", "torch.zeros((), dtype=torch.float64)"),)
    ),
)
