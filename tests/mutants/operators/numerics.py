"""Constants, norm statistics, positions and schedules in a dtype that cannot hold them."""

from mutants.operators import Edit, Operator, family, rules

OPERATORS = family(
    "numerics",
    Operator(
        "mask-constant-in-half",
        rules("406"),
        (Edit('X_.float().masked_fill(M_, float("-inf"))', "X_.half().masked_fill(M_, -1e9)"),),
        raises="without overflow",
    ),
    Operator(
        "additive-mask-in-half",
        rules("406"),
        (Edit('X_.float().masked_fill(M_, float("-inf"))', "(X_.half() + M_.half() * -1e9).float()"),),
        beside=rules("201 213 411 702"),
    ),
    Operator(
        "square-root-guard-lost",
        rules("407"),
        (Edit("torch.sqrt(X_ + NUM_)", "torch.sqrt(X_.half() + NUM_).float()"),),
        beside=rules("411 213 403"),
    ),
    Operator(
        "division-guard-lost",
        rules("407"),
        (Edit("A_ / (B_ + NUM_)", "A_ / (B_.half() + NUM_).float()"),),
        beside=rules("411 209 213 403"),
    ),
    Operator(
        "norm-without-upcast",
        rules("403"),
        (
            Edit(
                "NAME_ = X_.float()\nNAME_ = NAME_ * torch.rsqrt(*REST_)",
                "NAME_ = X_.bfloat16()\nNAME_ = NAME_ * torch.rsqrt(*REST_)",
            ),
        ),
        beside=rules("407 405 411"),
    ),
    Operator(
        "norm-in-half",
        rules("403"),
        (
            Edit(
                "NAME_ = X_.float()\nNAME_ = NAME_ * torch.rsqrt(*REST_)",
                "NAME_ = X_.half()\nNAME_ = NAME_ * torch.rsqrt(*REST_)",
            ),
        ),
        beside=rules("201 407 405 411"),
    ),
    Operator(
        "batch-norm-low",
        rules("402"),
        (Edit("nn.BatchNorm1d(*REST_)", "nn.BatchNorm1d(*REST_).bfloat16()"),),
        beside=rules("101 301 102 103"),
        near=r"optim\.\w+\(",
    ),
    Operator(
        "batch-norm-2d-low",
        rules("402"),
        (Edit("nn.BatchNorm2d(*REST_)", "nn.BatchNorm2d(*REST_, dtype=torch.bfloat16)"),),
        beside=rules("101 301 102 103"),
        near=r"optim\.\w+\(",
    ),
    Operator(
        "positions-low",
        rules("408"),
        (Edit("torch.arange(*REST_, dtype=torch.float32)", "torch.arange(*REST_, dtype=torch.bfloat16)"),),
    ),
    Operator("timesteps-low", rules("408"), (Edit("T_.float()[:, None]", "T_.bfloat16()[:, None]"),)),
    Operator(
        "frequencies-low",
        rules("408"),
        (
            Edit(
                'self.register_buffer("inv_freq", X_, *REST_)',
                'self.register_buffer("inv_freq", X_.bfloat16(), *REST_)',
            ),
        ),
        near=r"inv_freq",
    ),
    Operator(
        "schedule-low",
        rules("408 405"),
        (Edit("torch.linspace(*REST_, dtype=torch.float32)", "torch.linspace(*REST_, dtype=torch.bfloat16)"),),
        near=r"cumprod",
    ),
)
