"""Notebooks: cells in order, IPython's own lines left out, findings at cell and line, fixes that touch nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from precaudit.commands.baseline import baseline
from precaudit.commands.check import check
from precaudit.notebook import Notebook, python_of
from precaudit.report import FORMATS

MODEL = "%%time\nmodel = torch.nn.Linear(4, 4).bfloat16()\nfiles = !ls\ntext = '''\n%d\n'''\n"
OPTIMIZER = "opt = torch.optim.AdamW(model.parameters())  # größe"
CLIPPED = """scaler = torch.amp.GradScaler("cuda")
for x in loader:
    with torch.autocast("cuda", dtype=torch.float16):
        loss = net(x)
    scaler.scale(loss).backward()
    %timeit x
    torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()"""
NEVER_UPDATED = """net = torch.nn.Linear(2, 2)
optimizer = torch.optim.SGD(net.parameters())
scaler = torch.amp.GradScaler("cuda")
for x in loader:
    scaler.scale(net(x).sum()).backward()
    scaler.step(optimizer)"""
INSTALL = "%matplotlib inline\n!pip install torch \\\n    numpy\nimport torch\n"
SHELL = "%%bash\nprint 'this is (not Python\n"


def written(*cells: tuple[str, str], indent: int | None = 1, ascii: bool = False, **about: object) -> str:
    made = [
        {"cell_type": kind, "metadata": {}, "source": source.splitlines(True)}
        | ({"outputs": [], "execution_count": None} if kind == "code" else {})
        for kind, source in cells
    ]
    return json.dumps({"cells": made, "metadata": about, "nbformat": 4}, indent=indent, ensure_ascii=ascii) + "\n"


def notebook(*sources: str, **how: object) -> str:
    return written(("markdown", "# float16\n"), *(("code", source) for source in sources), **how)  # type: ignore[arg-type]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(check, list(arguments))


def places(*arguments: str) -> list[tuple[str, int, int]]:
    found = json.loads(run(*arguments, "--output-format", "json").stdout)["findings"]
    return [(f["rule"], f["cell"], f["line"]) for f in found if not f["suppressed"] and f["severity"] != "note"]


def test_findings_stand_at_their_cell_and_the_line_in_it(project: Path) -> None:
    (project / "nb.ipynb").write_text(notebook(INSTALL, SHELL, MODEL, OPTIMIZER))
    for name in ("nb.ipynb", "."):
        result = run(name)
        assert result.exit_code == 1
        assert result.stderr == ""
        assert places(name) == [("PA101", 4, 2), ("PA301", 5, 1)]
    assert "nb.ipynb:cell 5:line 1:7" in run("nb.ipynb").stdout
    assert "opt = torch.optim.AdamW(model.parameters())  # größe" in run("nb.ipynb").stdout


@pytest.mark.parametrize("fmt", sorted(set(FORMATS) - {"flat"}))  # which names no place at all
def test_every_format_names_the_cell_and_its_line(project: Path, fmt: str) -> None:
    text = notebook(INSTALL, MODEL, OPTIMIZER)
    (project / "nb.ipynb").write_text(text)
    shown = run("nb.ipynb", "--output-format", fmt).stdout
    if fmt.startswith("json"):
        assert re.search(r'"line": 1,(?s:.*)"cell": 4', shown)
    else:
        assert re.search(r"cell 4:line 1\b", shown)
    # Services that know no cells are told the line of the file itself.
    number = str(1 + next(n for n, line in enumerate(text.splitlines()) if "AdamW" in line))
    pattern = {"sarif": '"startLine": N,', "github": ",line=N,", "gitlab": '"begin": N,', "junit": 'line="N"'}.get(fmt)
    assert pattern is None or pattern.replace("N", number) in shown


@pytest.mark.parametrize("layout", [{"indent": 1}, {"indent": None}, {"indent": 2, "ascii": True}])
def test_a_fix_changes_only_the_source_that_it_edits(project: Path, layout: dict[str, object]) -> None:
    path = project / "nb.ipynb"
    path.write_text(notebook(INSTALL, "# größe \u2028 \\u00e9\n", CLIPPED, **layout))
    before = path.read_text()
    shown = run("nb.ipynb", "--diff").stdout
    assert "+++ b/nb.ipynb:cell 4\n" in shown
    assert "\n     %timeit x\n+    scaler.unscale_(optimizer)\n" in shown
    assert path.read_text() == before
    result = run("nb.ipynb", "--fix")
    assert (result.exit_code, "precaudit: 1 fixed" in result.stderr) == (0, True)
    # One more string before the clipping, in the layout of its neighbours.
    (line,) = re.findall(r'"    torch[^\n]*?\)\\n",\s*', before)
    added = line.replace("torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)", "scaler.unscale_(optimizer)")
    assert path.read_text() == before.replace(line, added + line)


def test_a_fix_at_the_end_of_a_cell_stays_in_it_and_keeps_a_plain_string_plain(project: Path) -> None:
    path = project / "nb.ipynb"
    cells = json.loads(notebook(INSTALL, NEVER_UPDATED, "print('%d' % 1)"))
    cells["cells"][2]["source"] = "".join(cells["cells"][2]["source"])
    path.write_text(json.dumps(cells))
    assert run("nb.ipynb", "--fix").exit_code == 0
    after = json.loads(path.read_text())["cells"]
    assert after[2]["source"].endswith("    scaler.step(optimizer)\n    scaler.update()")
    assert after[3]["source"] == ["print('%d' % 1)"]


def test_ignore_comments_and_the_baseline_work_in_cells(project: Path) -> None:
    path = project / "nb.ipynb"
    path.write_text(notebook(INSTALL, MODEL.replace("()\nfiles", "()  # precaudit: ignore[PA101]\nfiles"), OPTIMIZER))
    assert places("nb.ipynb") == [("PA301", 4, 1)]
    CliRunner().invoke(baseline, ["."])
    path.write_text(notebook(INSTALL, "print(1)", MODEL, "x = 1\n" + OPTIMIZER))
    assert places("nb.ipynb", "--baseline", ".precaudit-baseline.json") == [("PA101", 4, 2)]


def test_a_cell_that_does_not_parse_is_told_and_the_others_are_checked(project: Path) -> None:
    (project / "nb.ipynb").write_text(notebook(INSTALL, "x = 1\ny = )\n", MODEL, OPTIMIZER))
    result = run("nb.ipynb")
    assert result.stderr == "precaudit: nb.ipynb:cell 3:line 2:5: not valid Python: unmatched ')'\n"
    assert places("nb.ipynb") == [("PA101", 4, 2), ("PA301", 5, 1)]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"cells": 3}', '{"cells": [1]}', "\0", "{" * 5000])
def test_what_is_no_notebook_is_never_green(project: Path, text: str) -> None:
    (project / "nb.ipynb").write_text(text)
    result = run("nb.ipynb")
    assert result.exit_code == 5
    assert result.stderr == "precaudit: nb.ipynb: not a notebook: no list of cells in JSON (nbformat 4)\n"


def test_a_notebook_in_another_language_is_skipped(project: Path) -> None:
    (project / "nb.ipynb").write_text(notebook("x <- 1", kernelspec={"language": "R"}))
    assert run("nb.ipynb").exit_code == 5
    (project / "good.py").write_text("x = 1\n")
    result = run(".")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "nb.ipynb: a notebook in r, not in Python" in result.stdout


@pytest.mark.parametrize("name", ["README.md", "train.sh", "notes"])
def test_an_unknown_kind_of_file_is_nothing_examined(project: Path, name: str) -> None:
    (project / name).write_text("x = 1\n")
    (project / "good.py").write_text("x = 1\n")
    assert run("good.py", name).exit_code == 5
    result = run(name)
    assert result.exit_code == 5
    assert result.stderr.startswith(f"precaudit: {name}: nothing was examined: neither Python nor a training config (")


def test_a_python_program_without_an_ending_is_read(project: Path) -> None:
    (project / "train").write_text(
        "#!/usr/bin/env python3\nimport torch\n" + MODEL.partition("\n")[2].partition("\n")[0]
    )
    assert run("train").exit_code == 0


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("x = 1\n%cd y\n!ls\n", "x = 1\npass\npass\n"),
        ("x = (1\n% 2)\n", "x = (1\n% 2)\n"),
        ("s = '''\n!not magic\n'''\n!magic\n", "s = '''\n!not magic\n'''\npass\n"),
        ("# it's\n!ls\n", "# it's\npass\n"),
        ("if x:\n    %time f()\n", "if x:\n    pass\n"),
        ("a = %time f()\n", "a = __ipython__\n"),
        ("model?\n?model\nf(x)??\n", "pass\npass\nf(x)??\n"),
        ("x = a \\\n  % b\n", "x = a \\\n  % b\n"),
        ("%%time\nx = 1", "\nx = 1"),
        ("%%writefile a.py\nx = 1\n", "\n\n"),
        ("%%\nx = 1\n", "\n\n"),
        ("ls ./checkpoints/\npip install x\nls = 1\nls - 1\n", "pass\npass\nls = 1\nls - 1\n"),
    ],
)
def test_what_belongs_to_ipython_is_blanked_line_by_line(source: str, code: str) -> None:
    assert python_of(source) == code


def test_an_edit_back_and_forth_gives_the_same_bytes() -> None:
    raw = b"\xef\xbb\xbf" + notebook(INSTALL, MODEL, CLIPPED).encode()
    book = Notebook(raw)
    assert book.changed(book.text) == (raw, [])
