"""The right code on a rule's page is right: `precaudit check` finds no error or warning in any of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from precaudit import rulebook

ROOT = Path(__file__).parents[1]
IMPORTS = "import copy\nimport math\n\nimport torch\nimport torch.nn.functional as F\nfrom torch import nn\n\n"


def test_no_right_example_has_a_finding(tmp_path: Path) -> None:
    written = [rule for rule in rulebook.load().rules.values() if not rule.right.lstrip().startswith("[[tool.")]
    for rule in written:
        config = rule.right.lstrip().startswith("{")
        path = tmp_path / f"{rule.id}.{'json' if config else 'py'}"
        path.write_text(rule.right if config else IMPORTS + rule.right, encoding="utf-8")
    command = [sys.executable, "-m", "precaudit", "check", "--no-cache", "--output-format", "json", str(tmp_path)]
    report = json.loads(subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout)
    assert report["coverage"]["files"] == len(written)
    # PA002's page shows an ignore comment on a line that is wrong only where its names are defined.
    loud = [f for f in report["findings"] if f["severity"] != "note"]
    found = [f"{Path(f['path']).name}:{f['line']} {f['rule']}" for f in loud]
    assert [place for place in found if not place.startswith("PA002.py:")] == []
