"""Which names of a program are models, optimizers, loss scalers, losses and averaged copies, by how they are used."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

NAME = r"((?:self\.)?[a-z_]\w*)"
USES: Mapping[str, tuple[str, ...]] = {
    "MODEL": (rf"{NAME}\.(?:named_)?parameters\(\)", rf"\bmodel=\s*{NAME}\b", rf"{NAME}\.train\(\)"),
    "OPT": (
        rf"(?m)^\s*{NAME}\.step\(\)",
        rf"scaler\.step\({NAME}\)",
        rf"\.unscale_\({NAME}\)",
        rf"{NAME}\.zero_grad\(",
        rf"(?m)^\s*{NAME} = torch\.optim\.\w+\(",
    ),
    "SCALER": (rf"{NAME}\.scale\(", rf"{NAME} = \S*GradScaler\("),
    "LOSS": (rf"{NAME}\.backward\(", rf"\.scale\({NAME}\)", rf"\.backward\({NAME}\)", rf"\breturn {NAME}\b.*# loss"),
    "EMA": (rf"{NAME} = copy\.deepcopy\(", rf"{NAME} = AveragedModel\("),
}
"""Regular expressions whose group is a name that plays the role."""
NEVER = {
    "OPT": re.compile(r"sched|model|net|warm|actor$|critic$"),
    "LOSS": re.compile(r"accelerator|fabric|engine|scaler|torch|autograd"),
}
SPOILT = ("self", "torch")


def roles(texts: Iterable[str]) -> dict[str, frozenset[str]]:
    """Role -> the names that play it in these files."""
    whole = "\n".join(texts)
    found = {}
    for role, uses in USES.items():
        names = {match[1] for use in uses for match in re.finditer(use, whole)} - set(SPOILT)
        found[role] = frozenset(n for n in names if role not in NEVER or not NEVER[role].search(n))
    found["MODEL"] -= found["EMA"] | found["OPT"]
    return found
