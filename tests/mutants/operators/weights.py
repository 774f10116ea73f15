"""The weights that are trained are cast low: whole, in part, after the optimizer, by default, in the masters."""

from mutants.operators import Edit, Operator, family, rules

AT_OPTIMIZER = r"optim\.\w+\(|\b(?:Adam|AdamW|SGD|Lion|Muon)\("
UNSCALE = "unscale FP16 gradients"
LOW = rules(
    "602 501 208 209 210 213 302 303 304 401 402 403 404 405 407 408 412 413 414 416 503 "
    "102 103 105 207 201 410 411 811"
)
"""What a model that is low as a whole may break besides: its activations, buffers, losses and sums are low too."""


def weights(name: str, *edits: Edit, breaks: str = "101 301", **rest: object) -> Operator:
    breaks_ = rules(breaks)
    beside = tuple(r for r in (*LOW, "PA101", "PA301") if r not in breaks_)
    return Operator(
        name, breaks_, edits, **{"beside": beside, "near": AT_OPTIMIZER, "shows": ("dtypes", "error"), **rest}
    )


OPERATORS = family(
    "weights",
    weights("model-cast-to-bfloat16", Edit("MODEL_ = X_", "MODEL_ = X_.to(torch.bfloat16)")),
    weights("model-bfloat16-method", Edit("MODEL_ = X_", "MODEL_ = X_\nMODEL_.bfloat16()")),
    weights(
        "model-and-inputs-in-bfloat16",
        Edit("MODEL_ = X_", "MODEL_ = X_.bfloat16()"),
        Edit("MODEL_(A_)", "MODEL_(A_.bfloat16())", everywhere=True),
    ),
    weights(
        "model-and-inputs-in-bfloat16-loss-in-float32",
        Edit("MODEL_ = X_", "MODEL_ = X_.to(dtype=torch.bfloat16)"),
        Edit("MODEL_(A_)", "MODEL_(A_.to(torch.bfloat16)).float()", everywhere=True),
    ),
    weights("model-half", Edit("MODEL_ = X_", "MODEL_ = X_.half()"), breaks="101 301 207 201", raises=UNSCALE),
    weights(
        "model-and-inputs-half",
        Edit("MODEL_ = X_", "MODEL_ = X_.half()"),
        Edit("MODEL_(A_)", "MODEL_(A_.half()).float()", everywhere=True),
        breaks="101 301 207 201",
        raises=UNSCALE,
    ),
    weights(
        "cast-after-optimizer",
        Edit(
            "OPT_ = CTOR_(MODEL_.parameters(), *REST_)", "OPT_ = CTOR_(MODEL_.parameters(), *REST_)\nMODEL_.bfloat16()"
        ),
        breaks="102",
    ),
    weights(
        "half-after-optimizer",
        Edit("OPT_ = CTOR_(MODEL_.parameters(), *REST_)", "OPT_ = CTOR_(MODEL_.parameters(), *REST_)\nMODEL_.half()"),
        breaks="102 207",
        raises=UNSCALE,
    ),
    weights(
        "data-of-parameters-cast-after-optimizer",
        Edit(
            "OPT_ = CTOR_(MODEL_.parameters(), *REST_)",
            "OPT_ = CTOR_(MODEL_.parameters(), *REST_)\n"
            "for weight in MODEL_.parameters():\n    weight.data = weight.data.to(torch.bfloat16)",
        ),
        breaks="102 101 301",
    ),
    weights("linear-built-low", Edit("nn.Linear(*REST_)", "nn.Linear(*REST_, dtype=torch.bfloat16)")),
    weights("embedding-built-low", Edit("nn.Embedding(*REST_)", "nn.Embedding(*REST_, dtype=torch.bfloat16)")),
    weights("convolution-cast", Edit("nn.Conv2d(*REST_)", "nn.Conv2d(*REST_).to(torch.bfloat16)")),
    weights("recurrent-layer-cast", Edit("nn.GRU(*REST_)", "nn.GRU(*REST_).bfloat16()")),
    weights("layer-norm-cast", Edit("nn.LayerNorm(*REST_)", "nn.LayerNorm(*REST_).bfloat16()")),
    weights(
        "every-linear-cast",
        Edit("nn.Linear(*REST_)", "nn.Linear(*REST_).to(torch.bfloat16)", everywhere=True),
    ),
    weights(
        "linear-layers-cast-in-a-loop",
        Edit(
            "OPT_ = CTOR_(MODEL_.parameters(), *REST_)",
            "for layer in MODEL_.modules():\n    if isinstance(layer, nn.Linear):\n        layer.to(torch.bfloat16)\n"
            "OPT_ = CTOR_(MODEL_.parameters(), *REST_)",
        ),
    ),
    weights(
        "data-of-parameters-cast",
        Edit(
            "MODEL_ = X_", "MODEL_ = X_\nfor weight in MODEL_.parameters():\n    weight.data = weight.data.bfloat16()"
        ),
    ),
    weights(
        "default-dtype-low",
        Edit("MODEL_ = X_", "torch.set_default_dtype(torch.bfloat16)\nMODEL_ = X_"),
        breaks="104",
    ),
    weights(
        "default-dtype-low-for-the-model",
        Edit(
            "MODEL_ = X_",
            "torch.set_default_dtype(torch.bfloat16)\nMODEL_ = X_\ntorch.set_default_dtype(torch.float32)",
        ),
        breaks="104 101 301",
    ),
    weights("parameter-built-low", Edit("nn.Parameter(X_)", "nn.Parameter(X_.bfloat16())")),
    weights(
        "parameter-built-half",
        Edit("nn.Parameter(X_)", "nn.Parameter(X_.half())"),
        breaks="101 301 201 207 811",
        raises=UNSCALE,
    ),
    weights("master-without-upcast", Edit("nn.Parameter(X_.float())", "nn.Parameter(X_)")),
    weights(
        "weights-rounded-after-each-step",
        Edit(
            "OPT_.step()",
            "OPT_.step()\nwith torch.no_grad():\n    for weight in MODEL_.parameters():\n"
            "        weight.copy_(weight.bfloat16())",
        ),
        breaks="105 101",
        shows=("weights",),
        witnesses=("trace",),
    ),
    weights(
        "masters-copied-back-from-the-model",
        Edit("P_.copy_(MASTER_)", "P_.copy_(MASTER_)\nMASTER_.copy_(P_)"),
        breaks="105 101",
        shows=("weights",),
    ),
)
