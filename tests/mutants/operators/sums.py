"""Sums that live long, or run over many terms, are low: buffers, totals, norms, running statistics, index kernels."""

from mutants.operators import Edit, Operator, family, rules

TOTALS = r"running|total|seen|count|sum|mean|hits|tokens"

OPERATORS = family(
    "sums",
    Operator(
        "gradient-buffers-low",
        rules("208"),
        (
            Edit(
                "NAME_ = [torch.zeros_like(X_, dtype=torch.float32) for P_ in Y_]",
                "NAME_ = [torch.zeros_like(X_, dtype=torch.bfloat16) for P_ in Y_]",
            ),
        ),
        beside=rules("209 304"),
        names={"NAME_": "buffer|grad|acc"},
        near=r"add_\(|\+=",
    ),
    Operator(
        "total-low",
        rules("304"),
        (Edit("NAME_ = torch.zeros((), dtype=torch.float32)", "NAME_ = torch.zeros((), dtype=torch.bfloat16)"),),
        beside=rules("303 405"),
        names={"NAME_": TOTALS},
        near=r"\+=|add_\(",
    ),
    Operator(
        "untyped-total-low",
        rules("304"),
        (Edit("NAME_ = torch.zeros(())", "NAME_ = torch.zeros((), dtype=torch.bfloat16)"),),
        beside=rules("303 405"),
        names={"NAME_": TOTALS},
        near=r"\+=|add_\(",
    ),
    Operator(
        "statistic-buffer-low",
        rules("304 402 103"),
        (
            Edit(
                "self.register_buffer(X_, torch.zeros(W_, dtype=torch.float32))",
                "self.register_buffer(X_, torch.zeros(W_, dtype=torch.bfloat16))",
            ),
        ),
        beside=rules("303 405"),
        near=r"\+=|copy_\(|lerp_\(",
    ),
    Operator(
        "spread-buffer-low",
        rules("304 402 103"),
        (
            Edit(
                "self.register_buffer(X_, torch.ones(W_, dtype=torch.float32))",
                "self.register_buffer(X_, torch.ones(W_, dtype=torch.bfloat16))",
            ),
        ),
        beside=rules("303 405"),
        near=r"\+=|copy_\(|lerp_\(",
    ),
    Operator(
        "count-buffer-low",
        rules("304 303"),
        (
            Edit(
                "self.register_buffer(X_, torch.tensor(N_, dtype=torch.float32))",
                "self.register_buffer(X_, torch.tensor(N_, dtype=torch.bfloat16))",
            ),
        ),
        beside=rules("405"),
        near=r"\+=|copy_\(",
    ),
    Operator(
        "clipping-by-a-low-norm",
        rules("209"),
        (
            Edit(
                "NAME_.clip_grad_norm_(MODEL_.parameters(), N_)",
                "squares = sum(p.grad.half().square().sum() for p in MODEL_.parameters() if p.grad is not None)\n"
                "ratio = (N_ / (squares.sqrt() + 1e-6)).clamp(max=1.0)\n"
                "for p in MODEL_.parameters():\n    if p.grad is not None:\n        p.grad.mul_(ratio)",
            ),
        ),
        beside=rules("202 407 405 411"),
    ),
    Operator(
        "norm-of-buffers-low",
        rules("209"),
        (
            Edit(
                "torch.sqrt(sum(B_.pow(2).sum() for B_ in Y_))", "torch.sqrt(sum(B_.half().pow(2).sum() for B_ in Y_))"
            ),
        ),
        beside=rules("405 411"),
    ),
    Operator(
        "cumulative-product-low",
        rules("405 408"),
        (Edit("torch.cumprod(X_, dim=0)", "torch.cumprod(X_.bfloat16(), dim=0)"),),
    ),
    Operator(
        "rows-summed-low",
        rules("405"),
        (
            Edit("torch.zeros(X_, dtype=torch.float32)", "torch.zeros(X_, dtype=torch.bfloat16)"),
            Edit("NAME_.index_add_(D_, I_, X2_)", "NAME_.index_add_(D_, I_, (X2_).bfloat16())", everywhere=True),
        ),
        names={"X_": r"shape|len\("},
        near="index_add_",
    ),
)
