"""The code of docs/api.md, run as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from test_audit import build, train
from torch import float32

PAGE = Path(__file__).parent.parent.parent / "docs" / "api.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_what_stands_around_a_loop_runs_in_this_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks without a framework or a test of their own share their names, as on the page."""
    monkeypatch.chdir(tmp_path)
    model, optimizer = build(float32)
    names: dict[str, Any] = {"model": model, "optimizer": optimizer, "train": train}
    mine = [block for block in BLOCKS if "pytest" not in block]
    assert len(mine) == 2
    for block in mine:
        exec(compile(block, str(PAGE), "exec"), names)
    assert names["run"].ok
    assert names["fit"].audit.ok
    assert (tmp_path / "precision.json").is_file()


def test_the_tests_of_the_page_pass(pytester: pytest.Pytester) -> None:
    (block,) = [block for block in BLOCKS if "import pytest" in block]
    prelude = f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    prelude += f"sys.path.insert(0, {str(Path(__file__).parent.parent)!r})\n"
    prelude += "import torch\nfrom test_audit import build, train\nmodel, optimizer = build(torch.float32)\n"
    pytester.makepyfile(test_page=prelude + block)
    loaded = ["-p", "precaudit.integrations.pytest_plugin"]
    installed = pytester.runpytest_subprocess("--help").stdout.str().count("--precaudit-fail-on")
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", *([] if installed else loaded))
    result.assert_outcomes(passed=2)
