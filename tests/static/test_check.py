"""The check command as a user meets it: exit codes, selection, ignore comments, baseline, bad input."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from precaudit import disk
from precaudit.commands.baseline import baseline
from precaudit.commands.check import check
from precaudit.errors import ConfigError, OutputError, UsageError
from precaudit.launch.identity import begin
from precaudit.model.vocabulary import Fact
from precaudit.static import analyze as analyze_module
from precaudit.static.files import fixes
from precaudit.static.source import Source

BAD = """import torch

model = torch.nn.Linear(4, 4).bfloat16()
opt = torch.optim.AdamW(model.parameters())
"""
GOOD = "import torch\n\nmodel = torch.nn.Linear(4, 4)  # not bfloat16\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    return tmp_path


def run(*arguments: str, text: str | None = None) -> Result:
    return CliRunner().invoke(check, list(arguments), input=text, catch_exceptions=True)


def rules(*arguments: str) -> list[tuple[str, int]]:
    result = run(*arguments, "--output-format", "json")
    found = json.loads(result.stdout)["findings"]
    return sorted((f["rule"], f["line"]) for f in found if not f["suppressed"])


def test_errors_exit_1_and_clean_code_exits_0(project: Path) -> None:
    (project / "bad.py").write_text(BAD)
    (project / "good.py").write_text(GOOD)
    assert run("bad.py").exit_code == 1
    assert run("good.py").exit_code == 0
    assert run("bad.py", "--exit-zero").exit_code == 0
    assert run("bad.py", "--fail-on", "never").exit_code == 0


def test_warnings_fail_only_when_asked_to(project: Path) -> None:
    (project / "bad.py").write_text(BAD)
    assert run("bad.py", "--select", "PA101").exit_code == 0
    assert run("bad.py", "--select", "PA101", "--fail-on", "warning").exit_code == 1


def test_nothing_examined_is_exit_5(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "notes.txt").write_text("half")
    result = run(".")
    assert result.exit_code == 5
    assert result.stderr == "precaudit: .: nothing was examined: no Python file or training config here\n"
    assert json.loads(run(".", "--output-format", "json").stdout)["status"] == "inconclusive"
    (project / "broken.py").write_text("float16 = (")
    assert run("broken.py").exit_code == 5
    assert run().exit_code == 5


def test_one_folder_that_holds_nothing_makes_a_clean_run_inconclusive(project: Path) -> None:
    for folder in ("src", "scripts"):
        (project / folder).mkdir()
    (project / "src" / "good.py").write_text(GOOD)
    result = run("src", "scripts")
    assert result.exit_code == 5
    assert result.stderr.startswith("precaudit: scripts: nothing was examined")
    (project / "src" / "bad.py").write_text(BAD)
    assert run("src", "scripts").exit_code == 1


def test_no_file_from_pre_commit_is_exit_0(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRE_COMMIT", "1")
    assert run().exit_code == 0


def test_a_missing_path_is_one_line(project: Path) -> None:
    result = run("absent.py")
    assert isinstance(result.exception, UsageError)
    assert str(result.exception) == "absent.py: no such file or folder"


def test_select_ignore_and_per_file_ignores(project: Path) -> None:
    (project / "bad.py").write_text(BAD)
    assert rules("bad.py") == [("PA101", 3), ("PA301", 4)]
    assert rules("bad.py", "--select", "PA3") == [("PA301", 4)]
    assert rules("bad.py", "--ignore", "missing-master-weights") == [("PA301", 4)]
    (project / "pyproject.toml").write_text('[tool.precaudit.per-file-ignores]\n"bad*" = ["PA1"]\n')
    assert rules("bad.py") == [("PA301", 4)]


def test_command_line_beats_environment_beats_file(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "bad.py").write_text(BAD)
    (project / "pyproject.toml").write_text('[tool.precaudit]\nselect = ["PA301"]\n')
    assert rules("bad.py") == [("PA301", 4)]
    monkeypatch.setenv("PRECAUDIT_SELECT", "PA101")
    assert rules("bad.py") == [("PA101", 3)]
    assert rules("bad.py", "--select", "PA3") == [("PA301", 4)]


def test_an_unknown_setting_is_an_error_with_a_suggestion(project: Path) -> None:
    (project / "pyproject.toml").write_text('[tool.precaudit]\nselct = ["PA301"]\n')
    result = run(".")
    assert isinstance(result.exception, ConfigError)
    assert str(result.exception) == "pyproject.toml: [tool.precaudit] selct: unknown key; did you mean 'select'?"


def test_an_ignore_comment_works_on_any_line_of_its_statement(project: Path) -> None:
    (project / "a.py").write_text(
        BAD.replace("model.parameters()", "\n    model.parameters(),  # precaudit: ignore[PA301] - measured\n")
        + "x = 1  # noqa: PA301\n"
    )
    assert rules("a.py") == [("PA101", 3)]


def test_an_ignore_comment_on_its_own_line_belongs_to_the_next_statement(project: Path) -> None:
    (project / "a.py").write_text(BAD.replace("opt =", "# precaudit: ignore[low-precision-optimizer-state]\nopt ="))
    assert rules("a.py") == [("PA101", 3)]


def test_ignore_file_silences_the_file(project: Path) -> None:
    (project / "a.py").write_text("# precaudit: ignore-file[PA101, PA301]\n" + BAD)
    assert rules("a.py") == []


def test_unused_and_nameless_ignores_are_reported(project: Path) -> None:
    (project / "a.py").write_text(GOOD + "x = 1  # precaudit: ignore[PA301]\ny = 2  # precaudit: ignore\n")
    assert rules("a.py") == [("PA001", 4), ("PA002", 5)]


def test_gitignore_holds_also_for_files_that_are_named(project: Path) -> None:
    (project / ".gitignore").write_text("made/\n")
    (project / "made").mkdir()
    (project / "made" / "bad.py").write_text(BAD)
    (project / "good.py").write_text(GOOD)
    assert rules(".") == []
    result = run("made/bad.py")
    assert result.exit_code == 0
    assert "made/bad.py: excluded by .gitignore or the settings" in result.stdout
    assert run("made").exit_code == 0


def test_the_nearest_gitignore_decides_and_exclude_adds_to_it(project: Path) -> None:
    (project / ".git").mkdir()
    (project / ".gitignore").write_text("*_gen.py\n")
    for folder in ("a", "b"):
        (project / folder).mkdir()
        (project / folder / "x_gen.py").write_text(BAD)
    (project / "b" / ".gitignore").write_text("!x_gen.py\n")
    assert {line for _, line in rules(".")} == {3, 4}
    assert run("a/x_gen.py").exit_code == 0
    assert run("b/x_gen.py").exit_code == 1
    assert rules(".", "--exclude", "b/") == []
    assert rules("b/x_gen.py", "--exclude", "b/") == []


def test_show_files_lists_what_would_be_checked(project: Path) -> None:
    (project / "bad.py").write_text(BAD)
    (project / "ds.json").write_text("{}")
    assert run(".", "--show-files").stdout.split() == ["bad.py", "ds.json"]


def test_standard_input(project: Path) -> None:
    result = run("-", "--stdin-filename", "src/x.py", "--output-format", "concise", text=BAD)
    assert result.exit_code == 1
    assert "src/x.py:4:7" in result.stdout


def test_a_baseline_survives_moved_code_and_prunes(project: Path) -> None:
    path = project / "bad.py"
    path.write_text(BAD)
    assert CliRunner().invoke(baseline, ["."]).exit_code == 0
    path.write_text("# moved\n\n\n" + BAD)
    assert rules(".", "--baseline", ".precaudit-baseline.json") == []
    path.write_text(BAD + "other = torch.optim.Adam(model.parameters())\n")
    assert rules(".", "--baseline", ".precaudit-baseline.json") == [("PA301", 5)]
    path.write_text(GOOD)
    result = CliRunner().invoke(baseline, [".", "--prune"])
    assert "0 accepted, 2 removed" in result.output


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"import torch\nx = (torch.float16))\n", "bad.py:2:20: not valid Python:"),
        (b"print 'float16'\n", "bad.py:1:"),
        (b"def f(:\n", "bad.py:1:7: not valid Python: invalid syntax"),
        (b"print 'no word that a finding could start from'\n", "bad.py:1:1: not valid Python: Missing parentheses"),
        (
            b"import torch\nx = torch.float16\n" + b"# line\n" * 60 + b"def unrelated(x):\n    return x +* 3\n",
            "bad.py:64:15: not valid Python: invalid syntax",
        ),
        (b"x = '\xff'\n", "bad.py: invalid or missing encoding declaration"),
        (b"float16 = '\xff'\n", "bad.py: "),
        (b"# coding: nonsense\nfloat16 = 1\n", "bad.py: unknown encoding"),
        (b"float16\0\n", "bad.py: source code cannot contain null bytes"),
        (b"float16 = " + b"(" * 3000 + b")" * 3000, "bad.py"),
        (
            b"float16 = 1\n" + b"x = [1, 2, 3]\n" * 200_000,
            "bad.py: too large to parse: 2.8 MB of code, 2 MB is allowed",
        ),
    ],
)
def test_bad_input_is_one_line_and_the_run_goes_on(project: Path, content: bytes, message: str) -> None:
    (project / "bad.py").write_bytes(content)
    (project / "other.py").write_text(BAD)
    result = run("bad.py", "other.py", "--output-format", "json")
    assert result.exit_code == 1
    lines = [line for line in result.stderr.splitlines() if line]
    assert len(lines) == 1
    assert lines[0].startswith(f"precaudit: {message}")
    assert len(json.loads(result.stdout)["coverage"]["skipped"]) == 1


@pytest.mark.parametrize("fmt", ["text", "concise", "json", "md"])
def test_a_file_that_cannot_be_parsed_beside_a_clean_one_is_told_once_and_fails(project: Path, fmt: str) -> None:
    (project / "bad.py").write_text("def f(:\n")
    (project / "good.py").write_text(GOOD)
    result = run(".", "--output-format", fmt)
    assert result.exit_code == 1
    assert result.stderr == "precaudit: bad.py:1:7: not valid Python: invalid syntax\n"
    if fmt == "text":
        assert "bad.py" not in result.stdout
    if fmt != "json":
        assert "inconclusive: not everything could be read; in the rest no errors, no warnings" in result.stdout
    assert run(".", "--exit-zero").exit_code == 0
    assert run(".", "--fail-on", "never").exit_code == 0


def test_a_baseline_that_cannot_be_written_is_one_line(project: Path) -> None:
    (project / "good.py").write_text(GOOD)
    result = CliRunner().invoke(baseline, [".", "--output", "gone/base.json"])
    assert isinstance(result.exception, OutputError)
    assert str(result.exception) == (
        "gone/base.json: cannot be written: No such file or directory; choose another place with --output"
    )


def test_a_file_that_cannot_be_fixed_is_one_line_and_the_others_are_fixed(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(path: Path, raw: bytes) -> None:
        if path.name == "a.py":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        disk.rewrite(path, raw)

    monkeypatch.setattr(fixes, "rewrite", write)
    for name in ("a.py", "b.py"):
        (project / name).write_text(CLIPPED)
    result = run(".", "--fix")
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        "precaudit: 1 fixed",
        "precaudit: a.py: cannot be written: Permission denied; nothing was fixed in it",
    ]
    assert (project / "a.py").read_text() == CLIPPED
    assert "unscale_" in (project / "b.py").read_text()


def test_a_folder_that_takes_no_cache_changes_nothing(project: Path) -> None:
    (project / "bad.py").write_text(BAD)
    (project / ".precaudit_cache").write_text("a file where the folder should be")
    result = run("bad.py")
    assert (result.exit_code, result.stderr) == (1, "")


def test_a_mistake_of_ours_in_one_file_is_one_line_and_the_run_goes_on(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def analyze(source: Source) -> tuple[list[Fact], list[list[str]]]:
        if source.path == "bad.py":
            raise ZeroDivisionError("ours")
        return real(source)

    real = analyze_module.analyze
    monkeypatch.setattr(analyze_module, "analyze", analyze)
    for name in ("bad.py", "other.py"):
        (project / name).write_text(BAD)
    result = run("bad.py", "other.py", "--output-format", "json")
    assert result.exit_code == 3
    (line,) = result.stderr.splitlines()
    assert line.startswith("precaudit: bad.py: internal error at test_check.py:")
    assert line.endswith(
        "this is a bug of precaudit: set PRECAUDIT_TRACEBACK=1 to see the traceback, and please report it"
    )
    assert {f["path"] for f in json.loads(result.stdout)["findings"]} == {"other.py"}


def test_a_syntax_error_is_told_where_an_earlier_run_over_much_more_had_not_looked_for_it(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "bad.py").write_text("def f(:\n")
    monkeypatch.setattr("precaudit.static.files.run.COMPILED_TO", 1)
    assert run(".").stderr == ""
    monkeypatch.undo()
    monkeypatch.chdir(project)
    assert run(".").stderr.startswith("precaudit: bad.py:1:7: not valid Python")


def test_empty_files_broken_links_and_link_loops_are_no_errors(project: Path) -> None:
    (project / "empty.py").write_bytes(b"")
    (project / "broken.py").symlink_to("nowhere.py")
    (project / "loop").symlink_to(".")
    assert run(".").exit_code == 0


def test_a_latin_1_file_is_read_by_its_own_declaration(project: Path) -> None:
    (project / "a.py").write_bytes(b"# coding: latin-1\nname = '\xe9'\n" + BAD.encode())
    assert ("PA301", 6) in rules("a.py")


def test_the_cache_gives_the_same_answer_and_survives_damage(project: Path) -> None:
    (project / "bad.py").write_text(BAD)
    first = rules(".")
    assert rules(".") == first
    for file in (project / ".precaudit_cache").glob("*.json"):
        file.write_text("{broken")
    assert rules(".") == first
    helper = project / "helper.py"
    helper.write_text("import torch\nDTYPE = torch.bfloat16\n")
    (project / "bad.py").write_text("from helper import DTYPE\n" + BAD.replace(".bfloat16()", ".to(DTYPE)"))
    assert ("PA301", 5) in rules("bad.py")
    helper.write_text("import torch\nDTYPE = torch.float32\n")
    assert rules("bad.py") == []


@pytest.mark.parametrize("fmt", ["sarif", "github", "gitlab", "junit", "json", "concise"])
def test_paths_are_right_where_the_cache_was_made_in_another_folder(
    project: Path, monkeypatch: pytest.MonkeyPatch, fmt: str
) -> None:
    (project / ".git").mkdir()
    (project / "pyproject.toml").write_text("[tool.precaudit]\n")
    deep = project / "src" / "deep"
    deep.mkdir(parents=True)
    (deep / "x.py").write_text("from helper import model\n" + BAD.replace("model =", "other ="))
    (deep / "helper.py").write_text(BAD)
    services = {"sarif", "github", "gitlab", "junit"}
    monkeypatch.setattr("sys.argv", ["precaudit"])  # the report says how it was made
    for folder, named in ((project, "src/deep/"), (deep, ""), (project / "src", "deep/"), (project, "src/deep/")):
        monkeypatch.chdir(folder)
        shown = run(f"{named}x.py", "--output-format", fmt).stdout
        paths = set(re.findall(r"[\w/.]*\w\.py", shown))
        front = "src/deep/" if fmt in services else named
        # A cause inside a message is read by people, and named from where they are.
        assert f"{front}x.py" in paths
        assert paths <= {f"{place}{name}.py" for place in (front, named) for name in ("x", "helper")}


def test_deepspeed_config_findings_stand_on_their_own_lines(project: Path) -> None:
    config = {
        "train_batch_size": 32,
        "gradient_accumulation_steps": 4,
        "fp16": {"enabled": True, "loss_scale": 1024},
        "bf16": {"enabled": True, "bf16_master_weights_and_grads": True},
        "data_types": {"grad_accum_dtype": "bf16"},
    }
    (project / "ds.json").write_text(json.dumps(config, indent=1))
    assert rules("ds.json") == [("PA801", 10), ("PA802", 9), ("PA803", 13), ("PA804", 6)]


def test_yaml_configs_are_told_by_their_content(project: Path) -> None:
    (project / "args.yaml").write_text("output_dir: x\nfp16: true\nbf16: true\n")
    (project / "lightning.yaml").write_text("trainer:\n  max_epochs: 2\n  precision: 16-true\n")
    (project / "other.yaml").write_text("precision: 16-true\n")
    assert rules(".") == [("PA802", 3), ("PA807", 3)]


def test_github_output_is_chosen_under_github_actions(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "bad.py").write_text(BAD)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert run("bad.py").stdout.startswith("::")


@pytest.mark.parametrize("shape", ["text", "concise"])
def test_a_clean_run_prints_what_the_report_would_without_loading_it(project: Path, shape: str) -> None:
    (project / "good.py").write_text(GOOD)
    quick = run("good.py", "--output-format", shape)
    slow = run("good.py", "--output-format", shape, "--select", "ALL")
    assert quick.stdout == slow.stdout
    root = str(Path(__file__).parents[2])
    code = (
        "import sys\nfrom precaudit.commands.check import check\n"
        "try:\n    check(['good.py'])\nexcept SystemExit as e:\n    assert e.code == 0, e\n"
        "loaded = {'pydantic', 'libcst', 'rich'} & set(sys.modules)\nassert not loaded, loaded\n"
    )
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": root}, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_neither_torch_nor_the_code_under_check_is_imported(project: Path) -> None:
    (project / "bad.py").write_text(BAD + "raise SystemExit('executed')\n")
    code = (
        "import sys\nfrom precaudit.commands.check import check\n"
        "try:\n    check(['bad.py', '--exit-zero'])\nexcept SystemExit as e:\n    assert e.code == 0, e\n"
        "assert 'torch' not in sys.modules and 'bad' not in sys.modules\n"
    )
    root = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": root}, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_extend_select_adds_to_select_and_statistics_count(project: Path) -> None:
    (project / "bad.py").write_text(BAD)
    assert rules("bad.py", "--select", "PA1", "--extend-select", "PA301") == [("PA101", 3), ("PA301", 4)]
    lines = [line.split() for line in run("bad.py", "--statistics").stdout.splitlines()]
    assert lines == [
        ["1", "PA101", "warning", "missing-master-weights"],
        ["1", "PA301", "error", "low-precision-optimizer-state"],
    ]


CLIPPED = """import torch


def train(model, optimizer, loader):
    scaler = torch.amp.GradScaler("cuda")
    for x in loader:
        with torch.autocast("cuda", dtype=torch.float16):
            loss = model(x)
        scaler.scale(loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # keeps its comment
        scaler.step(optimizer)
        scaler.update()
"""


def test_diff_shows_what_fix_writes_and_a_fixed_file_is_clean(project: Path) -> None:
    path = project / "train.py"
    path.write_text(CLIPPED)
    shown = run("train.py", "--diff")
    assert shown.exit_code == 1
    assert "+        scaler.unscale_(optimizer)" in shown.stdout
    assert path.read_text() == CLIPPED
    done = run("train.py", "--fix")
    assert done.exit_code == 0
    assert "precaudit: 1 fixed" in done.stderr
    assert path.read_text().count("\n") == CLIPPED.count("\n") + 1
    assert run("train.py", "--diff").exit_code == 0


def test_what_fix_would_mend_is_marked_and_counted(project: Path) -> None:
    (project / "train.py").write_text(CLIPPED)
    (project / "bad.py").write_text(BAD)
    shown = run(".", "--output-format", "concise").stdout
    assert "train.py:10:9: PA202 error [*] gradients are clipped" in shown
    assert "bad.py:4:7: PA301 error optimizer state" in shown
    assert " · 1 fixable with --fix · " in shown
    assert "PA202 error [*]: gradients" in run("train.py").stdout
    marks = {f["rule"]: f["fixable"] for f in json.loads(run(".", "--output-format", "json").stdout)["findings"]}
    assert (marks["PA202"], marks["PA301"]) == (True, False)
    # A file that no fix can touch with certainty has no mark: the loss and the step stand in different blocks.
    (project / "train.py").write_text(
        CLIPPED.replace("        scaler.step(", "        if True:\n            scaler.step(")
    )
    assert "[*]" not in run("train.py").stdout


def test_ignore_comments_are_shown_first_and_written_when_asked_to(project: Path) -> None:
    path = project / "bad.py"
    source = BAD.replace("model.parameters()", "\n    model.parameters(),  # all of them\n").replace(
        "bfloat16()", "bfloat16()  # noqa: E501"
    )
    path.write_text(source)
    shown = run(".", "--add-ignore")
    assert shown.exit_code == 1
    assert "+model = torch.nn.Linear(4, 4).bfloat16()  # noqa: E501  # precaudit: ignore[PA101]\n" in shown.stdout
    assert "+)  # precaudit: ignore[PA301]\n" in shown.stdout
    assert shown.stderr == "precaudit: 2 ignore comments to add; --write puts them into the files\n"
    assert path.read_text() == source
    done = run(".", "--add-ignore", "--write")
    assert (done.exit_code, done.stderr) == (0, "precaudit: 2 ignore comments added; say after each why\n")
    assert rules(".") == []
    assert run(".", "--add-ignore").stdout == ""
    path.write_text(BAD.replace("bfloat16()", "bfloat16()  # precaudit: ignore[PA3] - why").replace("opt =", "o ="))
    assert run(".", "--add-ignore", "--write").exit_code == 0
    assert "bfloat16()  # precaudit: ignore[PA3, PA101] - why\n" in path.read_text()


def test_a_json_config_takes_no_ignore_comment(project: Path) -> None:
    (project / "ds.json").write_text('{"train_batch_size": 1, "fp16": {"enabled": true}, "bf16": {"enabled": true}}')
    (project / "args.yaml").write_text("output_dir: x\nfp16: true\nbf16: true\n")
    done = run(".", "--add-ignore", "--write")
    assert done.stderr.splitlines()[0] == "precaudit: ds.json: JSON has no comments; use per-file-ignores or a baseline"
    assert (project / "args.yaml").read_text() == "output_dir: x\nfp16: true\nbf16: true  # precaudit: ignore[PA802]\n"


def test_what_the_baseline_hides_is_counted_and_its_path_is_the_users(project: Path) -> None:
    (project / "pyproject.toml").write_text("[tool.precaudit]\n")
    (project / "src").mkdir()
    (project / "src" / "bad.py").write_text(BAD)
    os.chdir(project / "src")
    CliRunner().invoke(baseline, [".", "--output", "here.json"])
    assert "no errors, no warnings · 2 in the baseline · 2 files" in run(".", "--baseline", "here.json").stdout


def git(folder: Path, *words: str) -> None:
    names = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "init.defaultBranch=main")
    subprocess.run(["git", *names, *words], cwd=folder, check=True, capture_output=True)


def test_since_tells_only_what_stands_on_changed_lines(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("old.py", 'größe "x".py'):
        (project / name).write_text(GOOD + "opt = torch.optim.AdamW(model.parameters())\n" + BAD)
    git(project, "init", "-q")
    git(project, "add", ".")
    git(project, "commit", "-qm", "start")
    git(project, "checkout", "-qb", "work")
    assert run(".", "--since", "main").exit_code == 0
    assert " · 4 on unchanged lines" in run(".", "--since", "main").stdout
    text = (project / "old.py").read_text()
    (project / "old.py").write_text(text.replace("4, 4)  # not bfloat16", "4, 4).bfloat16()"))
    (project / 'größe "x".py').write_text((text + "\n\n" + BAD).replace("import torch\n\n", "import torch\n", 1))
    (project / "new.py").write_text(BAD)
    (project / "ignored.py").write_text(BAD)
    (project / ".gitignore").write_text("ignored.py\n")

    def found(*where: str) -> set[tuple[str, int]]:
        findings = json.loads(run(*where, "--since", "main", "--output-format", "json").stdout)["findings"]
        return {(f["path"], f["line"]) for f in findings}

    # The optimizer's line did not change, but what made it wrong did.
    wanted = {("old.py", 3), ("old.py", 4), ("new.py", 3), ("new.py", 4), ('größe "x".py', 12), ('größe "x".py', 13)}
    assert found(".") == wanted
    (project / "sub").mkdir()
    monkeypatch.chdir(project / "sub")
    assert found("..") == {(f"../{path}", line) for path, line in wanted}
    monkeypatch.chdir(project)
    git(project, "add", ".")
    git(project, "commit", "-qm", "work")
    git(project, "checkout", "-q", "main")
    (project / "other.py").write_text(BAD)
    git(project, "add", ".")
    git(project, "commit", "-qm", "main goes on")
    git(project, "checkout", "-q", "work")
    assert found(".") == wanted


def test_since_says_what_is_wrong_with_its_revision(project: Path) -> None:
    (project / "bad.py").write_text(BAD)
    assert str(run(".", "--since", "main").exception) == "--since: not in a git repository"
    git(project, "init", "-q")
    for revision in ("nowhere", "--output=x"):
        error = run(".", f"--since={revision}").exception
        assert isinstance(error, UsageError)
        assert str(error) == f"--since: '{revision}' is not a revision of the repository {os.path.realpath(project)}"


def test_fixing_standard_input_is_refused_in_one_line(project: Path) -> None:
    result = run("-", "--fix", text=CLIPPED)
    assert str(result.exception) == "'-': --fix and --diff need a file, not standard input"


def test_a_script_is_held_against_the_deepspeed_file_that_it_names(project: Path) -> None:
    (project / "conf").mkdir()
    (project / "conf" / "ds.json").write_text(
        json.dumps({"zero_optimization": {"stage": 2}, "fp16": {"enabled": True}})
    )
    (project / "src").mkdir()
    call = "args = TrainingArguments('o', bf16=True, deepspeed='conf/ds.json')"
    (project / "src" / "train.py").write_text(f"from transformers import TrainingArguments\n{call}\n")
    assert rules("src") == [("PA805", 2)]
    (project / "conf" / "ds.json").write_text(
        json.dumps({"zero_optimization": {"stage": 2}, "bf16": {"enabled": True}})
    )
    assert rules("src") == []


def test_the_settings_of_a_project_lead_no_cache_out_of_it(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = project / "inside"
    inside.mkdir()
    monkeypatch.chdir(inside)
    (inside / "a.py").write_text(BAD)
    for folder in ("../out", str(project / "out")):
        (inside / "pyproject.toml").write_text(f'[tool.precaudit]\ncache-dir = "{folder}"\n')
        with pytest.raises(ConfigError, match="leads out of the project; only PRECAUDIT_CACHE_DIR may name"):
            CliRunner().invoke(check, ["."], catch_exceptions=False)
    (inside / "pyproject.toml").write_text('[tool.precaudit]\ncache-dir = "made/deep"\n')
    (inside / "made").symlink_to(project / "out")
    with pytest.raises(ConfigError, match="leads out of the project"):
        CliRunner().invoke(check, ["."], catch_exceptions=False)
    (inside / "made").unlink()
    assert run(".").exit_code == 1
    assert [path.parent.name for path in inside.rglob("check-*.json")] == ["deep"]
    assert not (project / "out").exists()


def test_a_link_in_the_cache_folder_is_not_written_through(project: Path) -> None:
    (project / "a.py").write_text(BAD)
    (project / ".precaudit_cache").mkdir()
    (project / ".precaudit_cache" / ".gitignore").symlink_to(project / "planted")
    assert run(".").exit_code == 1
    assert not (project / "planted").exists()


@pytest.mark.parametrize("row", ["planted", "odd", "null", "text", "deep"])
def test_a_cache_that_somebody_else_wrote_silences_nothing(
    project: Path, row: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(project / "home"))
    (project / "a.py").write_text(BAD)
    expected = run(".").stdout
    (kept,) = (project / ".precaudit_cache").glob("check-*.json")
    clean = {"compiled": True, "facts": [], "suppressions": []}
    planted = {key: [*value[:4], clean] for key, value in json.loads(kept.read_text()).items()}
    texts = {
        "planted": json.dumps(planted),
        "odd": json.dumps({key: [*value[:4], {"facts": [{}]}] for key, value in planted.items()}),
        "null": json.dumps(dict.fromkeys(planted)),
        "text": "no JSON at all",
        "deep": "[" * 200_000,
    }
    for seal in (kept.with_suffix(".seal").read_text(), "", "another"):
        kept.write_text(texts[row])
        kept.with_suffix(".seal").write_text(seal)
        assert run(".").stdout == expected


def test_a_cache_of_this_user_is_used_and_one_of_another_is_not(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from precaudit.static.files.cache import Cache

    home = project / "home"
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    (project / "a.py").write_text(BAD)
    run(".")
    assert list(Cache(project / ".precaudit_cache")._rows) == [str(project / "a.py")]
    key = home / "precaudit" / "key"
    assert key.stat().st_mode & 0o777 == 0o600
    key.chmod(0o644)
    assert Cache(project / ".precaudit_cache")._rows == {}
    monkeypatch.setenv("XDG_CACHE_HOME", str(project / "another"))
    assert Cache(project / ".precaudit_cache")._rows == {}


@pytest.mark.parametrize("key", ["core.fsmonitor", "diff.external", "core.hooksPath"])
def test_what_a_repository_has_configured_git_to_run_is_not_run(project: Path, key: str) -> None:
    (project / "bad.py").write_text(GOOD)
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "one"]):
        subprocess.run(["git", *words], check=True, capture_output=True)
    hooks = project / "hooks"
    hooks.mkdir()
    for name in ("run", "post-index-change", "fsmonitor-watchman"):
        (hooks / name).write_text(f"#!/bin/sh\ntouch {project}/was-run\n")
        (hooks / name).chmod(0o755)
    value = hooks if key == "core.hooksPath" else hooks / "run"
    subprocess.run(["git", "config", key, str(value)], check=True)
    (project / "bad.py").write_text(BAD)
    assert rules("--since", "HEAD", ".") == [("PA101", 3), ("PA301", 4)]
    begin([sys.executable])
    assert not (project / "was-run").exists()
    subprocess.run(["git", "diff"], capture_output=True, check=False)
    subprocess.run(["git", "add", "."], capture_output=True, check=False)
    assert (project / "was-run").exists(), "git itself would have run it"
