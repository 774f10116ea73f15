"""Values that no gradient flows to are rounded, and a loss, a decision or a sum depends on them."""

from mutants.operators import Edit, Operator, family, rules

LATER = rules("103 201 213 304 401 403 404 405 407 411 413 415 416")


def value(name: str, find: str, put: str, breaks: str, **rest: object) -> Operator:
    mine = rules(breaks)
    rest.setdefault("beside", tuple(rule for rule in LATER if rule not in mine))
    return Operator(name, mine, (Edit(find, put),), **rest)


OPERATORS = family(
    "values",
    value(
        "average-rebound-low",
        "X_ = A_ * X_ + B_ * C_",
        "X_ = (A_ * X_ + B_ * C_).to(torch.bfloat16)",
        "304 103 405",
        witnesses=("trace",),
    ),
    value(
        "average-rebound-half",
        "X_ = A_ * X_ + B_ * C_",
        "X_ = (A_ * X_ + B_ * C_).half()",
        "304 103 405",
        witnesses=("trace",),
    ),
    value(
        "advantage-scan-low",
        "X_ = E_ + A_ * B_ * X_",
        "X_ = (E_ + A_ * B_ * X_).to(torch.bfloat16)",
        "405 304",
        witnesses=("trace",),
    ),
    value(
        "variance-in-one-pass-low",
        "X_.var(1, keepdim=True, unbiased=False)",
        "(X_.bfloat16().square().mean(1, keepdim=True) - X_.bfloat16().mean(1, keepdim=True).square())",
        "403 415",
    ),
    value(
        "variance-of-half",
        "(X_ - M_).square().mean(*REST_)",
        "(X_ - M_).half().square().mean(*REST_).float()",
        "403 405",
        witnesses=("trace",),
    ),
    value(
        "clamp-guard-half",
        "X_.clamp(min=G_)",
        "X_.half().clamp(min=1e-9).float()",
        "407",
        names={"G_": "e-"},
        witnesses=("trace",),
    ),
    value(
        "root-guard-half", "X_.add(G_).sqrt()", "X_.half().add(1e-9).sqrt().float()", "407 403", witnesses=("trace",)
    ),
    value(
        "index-sums-low",
        "torch.zeros_like(X_).index_add(0, I_, S_)",
        "torch.zeros_like(X_, dtype=torch.bfloat16).index_add(0, I_, S_.bfloat16()).float()",
        "405 304",
        witnesses=("trace",),
    ),
    value(
        "best-so-far-half",
        "X_.best, X_.waited = V_, 0",
        "X_.best, X_.waited = V_.half(), 0",
        "416",
        witnesses=("trace",),
    ),
    value(
        "plateau-by-bfloat16",
        "S_.step(V_)",
        "S_.step(V_.bfloat16())",
        "416",
        names={"S_": "sched", "V_": "value|loss|metric"},
        witnesses=("trace",),
    ),
    value(
        "best-weights-kept-half",
        "M_.load_state_dict(W_)",
        "M_.load_state_dict({name: tensor.half() for name, tensor in W_.items()})",
        "105 602",
        names={"W_": "weights|best|state"},
        shows=("weights", "left", "output", "saved"),
    ),
    value(
        "expanded-distance-low",
        "torch.cdist(A_, B_)",
        "(A_.square().sum(-1, keepdim=True) + B_.square().sum(-1) "
        "- 2 * (A_.bfloat16() @ B_.bfloat16().t()).float()).clamp(min=1e-9).sqrt()",
        "415",
        witnesses=("trace",),
        beside=rules("213 401 404 405 407"),
    ),
    value(
        "lost-bits-dropped",
        'state["low"].copy_(E_ - P_.float())',
        "pass",
        "101 301",
        beside=(),
        near=r"optim|Momentum\(",
    ),
    value(
        "importance-weights-low",
        "S_ = S_ / S_.sum()",
        "S_ = (S_ / S_.sum()).bfloat16()",
        "404 412 413",
        witnesses=("trace",),
    ),
    value(
        "priorities-half",
        "torch.multinomial(S_, *REST_)",
        "torch.multinomial(S_.half(), *REST_)",
        "412",
        names={"S_": "shares|prob"},
    ),
    value(
        "noise-table-low",
        'self.register_buffer("sigmas", T_)',
        'self.register_buffer("sigmas", T_.to(torch.bfloat16))',
        "408 503",
        witnesses=("trace",),
    ),
    value(
        "decay-on-scaled-gradients",
        "SCALER_.unscale_(OPT_)",
        "for group in OPT_.param_groups:\n    for p in group['params']:\n        p.grad.add_(p.detach(), alpha=0.01)\n"
        "SCALER_.unscale_(OPT_)",
        "205",
        witnesses=("trace",),
        beside=rules("202 203"),
    ),
    Operator(
        "hooked-sums-low",
        rules("208"),
        (
            Edit("P_.main_grad = torch.zeros_like(P_, dtype=torch.float32)", "P_.main_grad = torch.zeros_like(P_)"),
            Edit("P_.main_grad.clone()", "P_.main_grad.float()"),
        ),
        witnesses=("trace",),
        beside=rules("301 304"),
        near=r"main_grad|backward\(",
    ),
    value(
        "class-counts-half",
        "X_ = torch.zeros(2, dtype=torch.float32)",
        "X_ = torch.zeros(2, dtype=torch.float16)",
        "304",
        near=r"\+=",
    ),
    value(
        "temperature-power-low",
        "torch.softmax((X_ - C_) / T_, dim=-1)",
        "torch.softmax((X_ - C_).bfloat16() / T_, dim=-1).float()",
        "404",
    ),
    value(
        "smooth-target-half",
        "A_ + D_ * T_.amax(1)",
        "(A_ + D_ * T_.amax(1) + 1000).half() - 1000",
        "413",
        witnesses=("trace",),
    ),
    value(
        "angles-half",
        "torch.acos(X_.clamp(*REST_))",
        "torch.acos(X_.half().clamp(*REST_)).float()",
        "404 407 411 401",
        witnesses=("trace",),
    ),
)
