"""Loss scaling: calls dropped, doubled, reordered; float16 without it, bfloat16 with it; scales out of proportion."""

from mutants.operators import Edit, Operator, family, rules

UPSETS = rules("201 202 203 204 205 210 211 213 804 411")


def scaling(name: str, breaks: str, *edits: Edit, **rest: object) -> Operator:
    breaks_ = rules(breaks)
    return Operator(name, breaks_, edits, **{"beside": tuple(r for r in UPSETS if r not in breaks_), **rest})


REFUSED = r"unscale_\(\)|step\(\)|update\(\)|inf checks|FP16"
CLIP = "NAME_.clip_grad_norm_(*REST_)"
OPERATORS = family(
    "scaling",
    scaling("unscale-dropped", "202", Edit(f"SCALER_.unscale_(OPT_)\n{CLIP}", CLIP)),
    scaling("clip-before-unscale", "202", Edit(f"SCALER_.unscale_(OPT_)\n{CLIP}", f"{CLIP}\nSCALER_.unscale_(OPT_)")),
    scaling(
        "unscale-after-a-clip-by-value",
        "202",
        Edit(
            f"SCALER_.unscale_(OPT_)\n{CLIP}",
            "torch.nn.utils.clip_grad_value_(MODEL_.parameters(), 0.5)\nSCALER_.unscale_(OPT_)",
        ),
    ),
    scaling("update-dropped", "204", Edit("SCALER_.update()", ""), raises=REFUSED),
    scaling("update-doubled", "205", Edit("SCALER_.update()", "SCALER_.update()\nSCALER_.update()"), raises=REFUSED),
    scaling(
        "unscale-doubled",
        "205",
        Edit("SCALER_.unscale_(OPT_)", "SCALER_.unscale_(OPT_)\nSCALER_.unscale_(OPT_)"),
        raises=REFUSED,
    ),
    scaling(
        "update-for-each-optimizer",
        "205",
        Edit("SCALER_.step(OPT_)", "SCALER_.step(OPT_)\nSCALER_.update()"),
        raises=REFUSED,
    ),
    scaling(
        "update-before-step",
        "205 204",
        Edit("SCALER_.step(OPT_)\nSCALER_.update()", "SCALER_.update()\nSCALER_.step(OPT_)"),
        raises=REFUSED,
    ),
    scaling("bare-step", "203", Edit("SCALER_.step(OPT_)", "OPT_.step()"), raises=REFUSED),
    scaling("bare-step-without-update", "203", Edit("SCALER_.step(OPT_)\nSCALER_.update()", "OPT_.step()")),
    scaling("bare-step-after-scaler-step", "203 205", Edit("SCALER_.step(OPT_)", "SCALER_.step(OPT_)\nOPT_.step()")),
    scaling("backward-unscaled", "201 203 205", Edit("SCALER_.scale(LOSS_).backward()", "LOSS_.backward()")),
    scaling(
        "autocast-float16-without-scaler",
        "201",
        Edit(
            'torch.autocast("cpu", dtype=torch.bfloat16)', 'torch.autocast("cpu", dtype=torch.float16)', everywhere=True
        ),
        beside=rules("211 411 404 403 405 213 704 407"),
        near=r"backward\(",
    ),
    scaling(
        "scaler-beside-bfloat16",
        "206",
        Edit(
            'torch.autocast("cpu", dtype=torch.float16)', 'torch.autocast("cpu", dtype=torch.bfloat16)', everywhere=True
        ),
        beside=rules("704 804"),
        near=r"GradScaler\(",
    ),
    scaling(
        "scale-enormous",
        "804 210 213",
        Edit('torch.amp.GradScaler("cpu", init_scale=X_)', 'torch.amp.GradScaler("cpu", init_scale=2.0**60)'),
    ),
    scaling(
        "scale-fixed-and-tiny",
        "804 211",
        Edit(
            'torch.amp.GradScaler("cpu", init_scale=X_)',
            'torch.amp.GradScaler("cpu", init_scale=1.0 / 1024, growth_interval=10**9)',
        ),
    ),
)
