"""A traced run computes bit for bit what the plain run computes: printed losses, every tensor, every random state."""

from __future__ import annotations

from pathlib import Path

import harness
import pytest
from test_fixtures import argv, name, scripts


@pytest.mark.parametrize("path", scripts(), ids=name)
def test_losses_tensors_and_random_state_are_bit_identical(path: Path) -> None:
    plain = harness.run(path, argv(path))
    traced = harness.traced(path, argv(path))
    assert plain.tensors > 0, "the digest covers no tensor"
    assert (traced.stdout, traced.error, traced.exit_code) == (plain.stdout, plain.error, plain.exit_code)
    assert (traced.tensors, traced.digest) == (plain.tensors, plain.digest)


def test_digest_notices_one_changed_bit_and_one_drawn_number(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    text = "import torch\ndef main():\n    w = torch.ones(8)\n    {}\nmain()\n"
    digests = set()
    for change in ("pass", "w[3] = torch.nextafter(w[3], torch.tensor(2.0))", "torch.rand(1)"):
        script.write_text(text.format(change), encoding="utf-8")
        digests.add(harness.run(script).digest)
    assert len(digests) == 3
