"""The loss, what it is computed from, and what it is compared with are low."""

from mutants.operators import Edit, Operator, family, rules

LOSSES = r"cross_entropy|mse_loss|l1_loss|kl_div|binary_cross_entropy|nll_loss|huber|ctc|gaussian|cosine|margin"
BESIDE = rules("201 213 304 404 405 407 409 411 413 416 417")


def loss(name: str, *edits: Edit, breaks: str = "401 404", **rest: object) -> Operator:
    breaks_ = rules(breaks)
    beside = tuple(r for r in (*BESIDE, "PA401") if r not in breaks_)
    return Operator(name, breaks_, edits, **{"beside": beside, "names": {"FN_": LOSSES}, **rest})


OPERATORS = family(
    "loss",
    loss("loss-without-upcast", Edit("F.FN_(X_.float(), *REST_)", "F.FN_(X_, *REST_)"), near=r"\.backward\("),
    loss(
        "flattened-loss-without-upcast",
        Edit("F.FN_(X_.float().flatten(0, 1), *REST_)", "F.FN_(X_.flatten(0, 1), *REST_)"),
        near=r"\.backward\(",
    ),
    loss(
        "loss-from-half",
        Edit("F.FN_(X_, *REST_)", "F.FN_(X_.half(), *REST_)"),
        breaks="401 404 201",
        near=r"\.backward\(",
    ),
    loss(
        "loss-from-bfloat16",
        Edit("F.FN_(X_, *REST_)", "F.FN_(X_.bfloat16(), *REST_)"),
        names={"FN_": r"^cross_entropy|kl_div|nll_loss|ctc|gaussian|cosine"},
        near=r"\.backward\(",
    ),
    loss(
        "loss-from-bfloat16-pair",
        Edit("F.FN_(X_, Y_, *REST_)", "F.FN_(X_.bfloat16(), Y_.bfloat16(), *REST_)"),
        near=r"\.backward\(",
    ),
    loss("loss-cast", Edit("LOSS_ = X_", "LOSS_ = X_.to(torch.bfloat16)"), breaks="401", near=r"\.backward\("),
    loss("loss-half", Edit("LOSS_ = X_", "LOSS_ = X_.half()"), breaks="401", near=r"\.backward\("),
    loss("loss-cast-at-backward", Edit("LOSS_.backward()", "LOSS_.bfloat16().backward()"), breaks="401"),
    loss("loss-half-at-scaling", Edit("SCALER_.scale(LOSS_)", "SCALER_.scale(LOSS_.half())"), breaks="401 210 213"),
    loss("log-softmax-low", Edit("F.log_softmax(X_, dim=-1)", "F.log_softmax(X_.bfloat16(), dim=-1)"), breaks="404"),
    loss(
        "log-softmax-without-upcast",
        Edit("F.log_softmax(X_.float(), dim=-1)", "F.log_softmax(X_, dim=-1)"),
        breaks="404",
    ),
    loss(
        "teacher-softmax-low",
        Edit("F.softmax(X_.float() / T_, dim=-1)", "F.softmax(X_.bfloat16() / T_, dim=-1).float()"),
        breaks="404",
    ),
    loss(
        "probabilities-low",
        Edit("F.softmax(X_, dim=-1, dtype=torch.float32)", "F.softmax(X_.bfloat16(), dim=-1)"),
        breaks="404 412 414",
    ),
    loss(
        "logarithm-of-softmax",
        Edit("F.log_softmax(X_, dim=-1)", "torch.log(F.softmax(X_, dim=-1))"),
        breaks="409",
        witnesses=("check",),
    ),
    loss(
        "probabilities-before-binary-loss",
        Edit(
            "F.binary_cross_entropy_with_logits(X_.float(), *REST_)",
            "F.binary_cross_entropy(torch.sigmoid(X_).float(), *REST_)",
        ),
        breaks="409 404 401",
    ),
    loss(
        "exponential-of-ratio-low",
        Edit("torch.exp(A_ - B_)", "torch.exp(A_.bfloat16() - B_.bfloat16()).float()"),
        breaks="401 404",
    ),
    loss(
        "targets-rounded",
        Edit("F.FN_(X_, Y_)", "F.FN_(X_, Y_.bfloat16().float())"),
        breaks="413",
        names={"FN_": "mse_loss|l1_loss|huber", "Y_": "price|celsius|kelvin|year"},
    ),
)
