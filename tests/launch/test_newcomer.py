"""What a newcomer tripped over, each with the test that keeps it mended; those that had none are here."""

from __future__ import annotations

import ast
import ctypes
import os
import re
import subprocess
import sys
from pathlib import Path

import harness
import pytest
import torch
from desk import Desk

from precaudit.runtime.watchers.normalisation import Normalisation

TESTS = Path(__file__).resolve().parent.parent

DEFECTS = {
    1: ("no install line, no release, placeholders in pre-commit's `repo:`",
        "test_readme.py::test_the_readme_is_one_screen", "test_install.py::test_every_extra_for_users_is_on_the_page",
        "test_install.py::test_a_tag_of_another_version_builds_nothing",
        "static/test_pre_commit.py::test_a_commit_with_a_mistake_is_refused_and_a_mended_one_passes"),
    2: ("green where nothing was examined: a notebook, README.md, a run of one step",
        "static/test_notebooks.py::test_what_is_no_notebook_is_never_green",
        "static/test_notebooks.py::test_an_unknown_kind_of_file_is_nothing_examined",
        "static/test_check.py::test_nothing_examined_is_exit_5",
        "launch/test_bad_input.py::test_a_script_that_ends_before_the_window_does_is_never_green"),
    3: ("--keep-going says and writes nothing until the run ends, and loses all where precaudit is killed",
        "launch/test_meanwhile.py::test_the_report_of_a_run_that_goes_on_is_renewed_at_each_event",
        "launch/test_lost.py::test_a_run_whose_precaudit_was_killed_is_offered_by_the_next_command"),
    4: ("nobody is told that the command was stopped on purpose",
        "launch/test_trace.py::test_the_command_is_stopped_after_the_traced_steps"),
    5: ("NaN is not seen",
        "trace/test_non_finite.py::test_the_first_operation_is_the_one_that_gave_it_of_finite_inputs",
        "trace/test_non_finite.py::test_the_row_of_a_loss_that_is_nan_is_not_ok"),
    6: ("`could not follow reaction to aten.pow.Scalar`",
        "trace/test_overloads.py::test_no_overload_of_a_watched_operation_is_beyond_the_trace",
        "launch/test_newcomer.py::test_a_number_to_the_power_of_a_tensor_is_followed",
        "launch/test_newcomer.py::test_an_operation_that_we_fail_on_is_named_as_torch_names_it"),
    7: ("paths doubled below pyproject.toml in sarif, github, gitlab",
        "report/test_formats.py::test_sarif_places_are_relative_to_the_repository_and_not_to_the_working_directory",
        "launch/test_newcomer.py::test_a_place_below_pyproject_is_counted_from_the_repository"),
    8: ("--output-format sarif --output x.sarif writes JSON",
        "launch/test_trace.py::test_output_is_written_in_the_format_asked_for_or_the_one_its_name_says"),
    9: ("`next:` prints HTML on the terminal; `report` exits 1 for a conversion",
        "launch/test_report.py::test_open_writes_the_page_beside_the_report_and_prints_none_of_it",
        "launch/test_report.py::test_a_report_is_shown_with_exit_code_0_unless_fail_on_is_given"),
    10: ("ranks that ended by themselves are called killed",
         "launch/test_ranks.py::test_ranks_that_need_no_other_are_never_called_killed"),
    11: ("--skip 0 acts as --skip 1; a run of one step cannot be traced",
         "trace/test_skip_nothing.py::test_the_first_step_is_traced_and_nothing_is_disturbed",
         "trace/test_skip_nothing.py::test_a_run_of_one_step_can_be_traced",
         "launch/test_bad_input.py::test_a_script_that_ends_before_the_window_does_is_never_green"),
    12: ("bfloat16 positions up to 256 that feed angles are unseen by the trace and an error of check",
         "launch/test_newcomer.py::test_source_and_run_agree_on_positions_that_are_exact_but_feed_angles"),
    13: ("a file that cannot be parsed beside a readable one is said twice, exit 0",
         "static/test_check.py::test_a_file_that_cannot_be_parsed_beside_a_clean_one_is_told_once_and_fails"),
    14: ("no progress", "launch/test_progress.py::test_the_last_row_says_how_far_it_is_and_is_empty_afterwards"),
    15: ("roles cannot be typed as they are shown",
         "launch/test_trace.py::test_roles_can_be_typed_as_they_are_shown"),
    16: ("a read-only folder is called a bug of precaudit by baseline and --fix",
         "launch/test_newcomer.py::test_a_folder_that_cannot_be_written_is_one_line",
         "static/test_check.py::test_a_file_that_cannot_be_fixed_is_one_line_and_the_others_are_fixed",
         "static/test_check.py::test_a_baseline_that_cannot_be_written_is_one_line"),
    17: (".precaudit cannot be put elsewhere; `next:` names a report that was not written",
         "launch/test_report.py::test_the_latest_report_can_be_kept_elsewhere",
         "launch/test_bad_input.py::test_a_folder_that_takes_no_report_is_one_line_and_the_findings_still_decide"),
    18: ("what the baseline hides is not counted",
         "static/test_check.py::test_what_the_baseline_hides_is_counted_and_its_path_is_the_users"),
    19: ("the report begins on a progress bar's line; warnings of torch point into our folder",
         "launch/test_progress.py::test_a_progress_bar_of_the_program_stays_whole",
         "launch/test_newcomer.py::test_warnings_of_torch_name_the_line_that_they_name_without_us"),
    20: ("two unrelated runs are merged into PA505",
         "launch/test_report.py::test_two_runs_that_have_nothing_to_do_with_each_other_are_not_merged"),
    21: ("the fix and the why of another case",
         "launch/test_newcomer.py::test_the_fix_is_that_of_this_case"),
    22: ("PA401 and PA404 are two errors of one line",
         "launch/test_newcomer.py::test_a_low_loss_and_its_cross_entropy_are_one_error"),
    23: ("HTML and JSON do not say which run it was",
         "launch/test_report.py::test_a_report_says_which_run_it_is_of"),
}  # fmt: skip
"""Number -> what it was, and the tests (file::function, below tests/) that fail where it comes back."""


TERMINAL = {
    "one headline first": ["report/test_terminal.py::test_the_first_line_says_what_is_wrong_and_what_it_did"],
    "rows that were seen, one line for the rest, -v for what they need": [
        "report/test_terminal.py::test_what_was_not_observed_is_never_shown_as_ok",
        "report/test_terminal.py::test_a_role_that_was_not_observed_says_what_has_to_run_to_see_it",
    ],
    "a clean run fits in 15 lines": [
        "report/test_terminal.py::test_a_clean_run_fits_in_15_lines_with_the_two_that_are_printed_around_it"
    ],
    "the banner says that the command is stopped, the end that it was": [
        "launch/test_trace.py::test_the_command_is_stopped_after_the_traced_steps",
        "launch/test_trace.py::test_while_the_command_runs_only_one_line_of_ours_is_on_the_terminal",
    ],
    "a line of progress that leaves nothing behind, also over tqdm": [
        "launch/test_progress.py::test_the_last_row_says_how_far_it_is_and_is_empty_afterwards",
        "launch/test_progress.py::test_a_progress_bar_of_the_program_stays_whole",
    ],
    "overhead compares with an untraced step": [
        "report/test_terminal.py::test_a_role_that_was_not_observed_says_what_has_to_run_to_see_it"
    ],
    "--keep-going prints and writes when the window closes": [
        "launch/test_trace.py::test_keep_going_lets_the_command_end_by_itself",
        "launch/test_meanwhile.py::test_the_report_of_a_run_that_goes_on_is_renewed_at_each_event",
    ],
    "a window that never closed is inconclusive, exit 5, unless something was found": [
        "launch/test_bad_input.py::test_a_script_that_ends_before_the_window_does_is_never_green"
    ],
    "--skip 0 means 0": ["trace/test_skip_nothing.py::test_a_run_of_one_step_can_be_traced"],
    "role names as they are shown": ["launch/test_trace.py::test_roles_can_be_typed_as_they_are_shown"],
    "what the baseline hides is counted": [
        "static/test_check.py::test_what_the_baseline_hides_is_counted_and_its_path_is_the_users"
    ],
    "`next:` does something good": [
        "report/test_terminal.py::test_the_last_line_gives_the_counts_and_the_next_command",
        "launch/test_report.py::test_open_writes_the_page_beside_the_report_and_prints_none_of_it",
    ],
    "`report` exits 0 unless --fail-on": [
        "launch/test_report.py::test_a_report_is_shown_with_exit_code_0_unless_fail_on_is_given"
    ],
    "--output follows --output-format": [
        "launch/test_trace.py::test_output_is_written_in_the_format_asked_for_or_the_one_its_name_says"
    ],
}
"""What the terminal promises, and the tests that hold it to that."""


def test_every_defect_and_every_promise_has_a_test_that_exists() -> None:
    assert list(DEFECTS) == list(range(1, 24))
    for tests in [*(tests for _, *tests in DEFECTS.values()), *TERMINAL.values()]:
        assert tests
        for test in tests:
            file, _, name = test.partition("::")
            tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
            assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, test


def training(loss: str, model: str = "nn.Linear(8, 4)", before: str = "", within: str = "") -> str:
    """A script of five steps with this loss."""
    return f"""
import torch
from torch import nn
import torch.nn.functional as F
torch.manual_seed(0)
{before}
model = {model}
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
for step in range(5):
    x, y = torch.randn(16, 8), torch.randint(4, (16,))
    {within or "pass"}
    loss = {loss}
    loss.backward(); optimizer.step(); optimizer.zero_grad()
"""


def test_a_number_to_the_power_of_a_tensor_is_followed() -> None:
    model = torch.nn.Linear(4, 2, dtype=torch.bfloat16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def train() -> None:
        for _ in range(4):
            out = 2.0 ** model(torch.ones(3, 4, dtype=torch.bfloat16))
            out = torch.pow(2, out) + torch.pow(2.0, torch.tensor(True)) + out ** torch.tensor(2.0)
            out.float().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    assert harness.trace_call(train).coverage.notes == []


def test_an_operation_that_we_fail_on_is_named_as_torch_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> None:
        raise RuntimeError("Boolean value of Tensor is ambiguous")

    monkeypatch.setattr(Normalisation, "square", broken)
    model = torch.nn.Linear(4, 2, dtype=torch.bfloat16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def train() -> None:
        for _ in range(4):
            model(torch.ones(3, 4, dtype=torch.bfloat16)).pow(2).float().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    assert harness.trace_call(train).coverage.notes == [
        "precaudit could not follow one operation (pow), and judged nothing that rests on it; "
        "please report this: RuntimeError: Boolean value of Tensor is ambiguous"
    ]


def test_a_place_below_pyproject_is_counted_from_the_repository(
    real_desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(["git", "init", "-q"], cwd=real_desk.folder, check=True)
    real_desk.write("part/pyproject.toml", "[tool.precaudit]\n")
    real_desk.write("part/train.py", training("model(x).bfloat16().mean()"))
    for folder, path in ((".", "part/train.py"), ("part", "train.py")):
        monkeypatch.chdir(real_desk.folder / folder)
        for shape in ("sarif", "github", "gitlab"):
            told = real_desk.precaudit("check", path, "--output-format", shape).stdout
            places = re.findall(r'(?:file=|"uri": ?"|"path": ?")([^",]*)', told)
            assert set(places) == {"part/train.py"}, (folder, shape, places)


ROTATED = """
import torch
from torch import nn

class Rotated(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(32, 32)
        self.register_buffer("inv_freq", 1 / 10000 ** (torch.arange(0, 32, 2).float() / 32))

    def forward(self, x):
        positions = torch.arange(64, dtype=torch.bfloat16)
        angles = torch.outer(positions, self.inv_freq.to(torch.bfloat16))
        one, other = self.inner(x).chunk(2, -1)
        return one * angles.cos().float() - other * angles.sin().float()

model = Rotated()
optimizer = torch.optim.AdamW(model.parameters())
for step in range(5):
    model(torch.randn(2, 64, 32)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
"""


def test_source_and_run_agree_on_positions_that_are_exact_but_feed_angles(real_desk: Desk) -> None:
    """Of 64 positions bfloat16 keeps each; their products with the frequencies it does not."""
    traced = real_desk.trace(ROTATED)
    assert [(one["rule"], one["severity"]) for one in traced.report["findings"]] == [("PA408", "error")]
    checked = real_desk.precaudit("check", "train.py")
    assert "PA408 error" in checked.stdout
    assert (checked.code, traced.code) == (1, 1)


def _ordinary_user() -> None:
    """Takes from the child what lets root write into any folder: CAP_DAC_OVERRIDE and its like are not inherited."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        for capability in (1, 2):  # PR_CAPBSET_DROP
            libc.prctl(24, capability, 0, 0, 0)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["check", "train.py", "--fix"], "train.py: cannot be written: Permission denied; nothing was fixed in it"),
        (["check", "train.py", "--add-ignore", "--write"], "train.py: cannot be written: Permission denied"),
        (["baseline", "."], "FOLDER/.precaudit-baseline.json: cannot be written: Permission denied; "
                            "choose another place with --output"),
    ],
    ids=["fix", "add-ignore", "baseline"],
)  # fmt: skip
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, words: list[str], line: str) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "train.py").write_text(training("F.cross_entropy(model(x).bfloat16(), y)"))
    (folder / "train.py").chmod(0o444)
    folder.chmod(0o555)
    done = subprocess.run(
        [sys.executable, "-m", "precaudit", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        preexec_fn=_ordinary_user,
    )
    assert done.returncode == 2
    assert f"precaudit: {line.replace('FOLDER', str(folder))}" in done.stderr.splitlines()
    assert "bug of precaudit" not in done.stderr
    assert [path.name for path in folder.iterdir()] == ["train.py"]


WARNED = """
import io, warnings
warnings.simplefilter("always")
import torch
from torch import nn
model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
scaler = torch.amp.GradScaler("cuda")
torch.cuda.amp.GradScaler()
model.register_full_backward_hook(lambda *a: None)
for step in range(4):
    schedule.step()
    with torch.cuda.amp.autocast(): pass
    with torch.autocast("cpu", torch.float64): pass
    loss = nn.functional.mse_loss(model(torch.randn(3, 4)), torch.zeros(3, 1))
    nn.functional.softmax(torch.randn(3))
    loss.backward(create_graph=True)
    torch.tensor(torch.randn(3))
    optimizer.step()
    optimizer.zero_grad()
    (torch.randn(3, requires_grad=True) * 2).grad
"""


@pytest.mark.slow
def test_warnings_of_torch_name_the_line_that_they_name_without_us(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(WARNED)
    plain, traced = (
        subprocess.run([sys.executable, *words, "train.py"], cwd=tmp_path, capture_output=True, text=True, check=True,
                       env={**os.environ, "OMP_NUM_THREADS": "1"}).stderr
        for words in ([], ["-m", "precaudit", "trace", "--keep-going", "--output", "/dev/null"])
    )  # fmt: skip
    told = [sorted(line for line in text.splitlines() if "Warning: " in line) for text in (plain, traced)]
    assert len(told[0]) > 20
    assert told[0] == told[1]


# What was found, a part of its fix, and what would belong to another case.
CASES = {
    "cross-entropy-of-softmax": ("model(x).bfloat16().softmax(-1).log().gather(1, y[:, None]).float().mean().neg()",
                                 "PA404", "softmax", "logits.float(), target"),
    "float16-without-figures-of-bfloat16": ("F.cross_entropy(model(x).half(), y)", "PA404", "float()", "bfloat16"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_fix_is_that_of_this_case(real_desk: Desk, name: str) -> None:
    loss, rule, wanted, alien = CASES[name]
    real_desk.write("train.py", training(loss))
    found = {one["rule"]: one for one in real_desk.trace(training(loss)).report["findings"]}[rule]
    assert wanted in found["fix"]
    assert alien not in found["fix"] + found["why"]


def test_a_low_loss_and_its_cross_entropy_are_one_error(real_desk: Desk) -> None:
    seen = real_desk.trace(training("F.cross_entropy(model(x).bfloat16(), y)"))
    assert [(one["rule"], one["severity"]) for one in seen.report["findings"]] == [
        ("PA401", "error"),
        ("PA404", "warning"),
    ]
    assert seen.stderr.count("\nx PA") == 1
