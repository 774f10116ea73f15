"""What is saved is low, or the scaler is left out."""

from mutants.operators import Edit, Operator, family, rules

OPERATORS = family(
    "checkpoints",
    Operator(
        "weights-saved-low",
        rules("602"),
        (
            Edit(
                "MODEL_.state_dict()",
                "{name: value.to(torch.bfloat16) for name, value in MODEL_.state_dict().items()}",
            ),
        ),
        near=r"torch\.save",
    ),
    Operator(
        "model-halved-before-saving",
        rules("602"),
        (Edit("NAME_ = X_\ntorch.save(NAME_, *REST_)", "MODEL_.half()\nNAME_ = X_\ntorch.save(NAME_, *REST_)"),),
        near=r"torch\.save",
    ),
)
