"""What a loop may change, by its text: an assumption about anything else lasts from one turn to the next."""

from __future__ import annotations

import pytest

from precaudit.static.language.conditions import changes


@pytest.mark.parametrize(
    ("line", "assigned"),
    [
        ("loss = model(x, scale=2)", {"loss"}),
        ("(loss, kl) = model(x)", {"loss", "kl"}),
        ("total += loss", {"total"}),
        ("for batch in loader:", {"batch"}),
        ("if (n := len(batch)) > 3:", {"n"}),
        # A keyword's name and the words of what is called are assigned to by nobody.
        ("with torch.cuda.amp.autocast(enabled=args.amp):", set()),
        ("if args.amp == other:", set()),
    ],
)
def test_what_a_line_assigns_to(line: str, assigned: set[str]) -> None:
    found = changes(f"    {line}\n").assigned
    assert found - {"if"} == assigned
