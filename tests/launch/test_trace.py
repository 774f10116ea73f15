"""What a user gets from `precaudit trace`: the command untouched, one line before it, a judged report after it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from desk import Desk

from precaudit import cli

CLEAN = "import torch\ntorch.train(5)\n"
WRONG = "import torch\ntorch.train(5, 'bfloat16')\n"
EXACT = """
import os, pickle, sys, __main__
class Model: pass
print(__name__, __file__, __spec__, __doc__, __package__, __builtins__.__name__)
print(sys.argv, sys.path, sorted(vars(__main__)), os.getcwd())
print(type(pickle.loads(pickle.dumps(Model()))).__module__)
try:
    import sitecustomize
    print("sitecustomize", sitecustomize.__file__)
except ImportError as error:
    print(repr(error))
print(sorted(name for name in sys.modules if "precaudit" in name))
print([str(f).split(" at ")[0] for f in sys.meta_path if type(f).__name__ != "TorchWatcher"])
print(sys.stdin.read())
import warnings
warnings.warn("as without the trace")
{}["the traceback too"]
"""
RUNNING = "precaudit: running python train.py: steps 2 and 3 are watched, then it is stopped (--keep-going: it runs on)"


def test_findings_are_reported_and_decide_the_exit_code(desk: Desk) -> None:
    traced = desk.trace(WRONG)
    assert traced.code == 1
    assert traced.report["status"] == "findings"
    assert traced.report["command"] == "trace"
    assert traced.report["format_version"] == 1
    (finding,) = traced.report["findings"]
    assert (finding["rule"], finding["path"], finding["line"]) == ("PA301", "train.py", 2)
    assert traced.report["facts"][0]["site"][0] == "train.py"
    assert traced.report["exit_code"] == 0


def test_a_run_in_float32_is_clean(desk: Desk) -> None:
    traced = desk.trace(CLEAN)
    assert (traced.code, traced.report["status"], traced.report["findings"]) == (0, "clean", [])


def test_while_the_command_runs_only_one_line_of_ours_is_on_the_terminal(desk: Desk) -> None:
    traced = desk.trace("import torch, sys\nprint('out')\nprint('mine', file=sys.stderr)\ntorch.train(9)\n")
    assert traced.stdout == "out\n"
    lines = traced.stderr.splitlines()
    # Then an empty line, for the command may have left half a line there; at the end what became of it.
    assert lines[:3] == [RUNNING, "mine", ""]
    assert "precaudit: " not in "\n".join(lines[3:-1])
    assert lines[-1] == (
        "precaudit: python train.py was stopped on purpose: nothing later ran, no checkpoint was saved by it"
    )


def test_the_command_is_stopped_after_the_traced_steps(desk: Desk) -> None:
    traced = desk.trace(
        "import torch\nfor n in range(9):\n    print(n)\n    torch.step()\n", "--skip", "2", "--steps", "3"
    )
    assert traced.stdout.split() == ["0", "1", "2", "3", "4"]
    assert traced.ours[0] == RUNNING.replace("2 and 3", "3 to 5")


def test_keep_going_lets_the_command_end_by_itself(desk: Desk) -> None:
    traced = desk.trace(WRONG + "print('the end')\n", "--keep-going")
    first, *others = traced.ours
    assert first == "precaudit: running python train.py: steps 2 and 3 are watched, then it runs on untraced"
    assert all(line.startswith("precaudit: steps 2 and 3 were watched: ") for line in others)
    assert traced.stdout == "the end\n"
    assert traced.code == 1


def test_a_checkpoint_in_finally_is_not_overwritten_by_the_stop(desk: Desk) -> None:
    old = desk.write("last.pt", "good")
    desk.trace("import torch\ntry:\n    torch.train(9)\nfinally:\n    open('last.pt', 'w').write('cut short')\n")
    assert old.read_text() == "good"


def test_the_script_sees_what_it_sees_without_us(desk: Desk) -> None:
    desk.write("train.py", EXACT)
    words = ["train.py", "--steps", "7", "-q", "--", "x"]
    plain = subprocess.run([sys.executable, *words], input="in", capture_output=True, text=True, check=False)
    traced = desk.start("trace", *words, stdin=subprocess.PIPE)
    out, err = traced.communicate("in")
    assert out == plain.stdout
    assert [line for line in err.splitlines() if line in plain.stderr.splitlines()] == plain.stderr.splitlines()
    assert traced.returncode == plain.returncode == 1


def test_another_sitecustomize_still_runs(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.write("site/sitecustomize.py", "theirs = 'here'\n")
    monkeypatch.setenv("PYTHONPATH", f"{desk.folder / 'site'}{os.pathsep}{os.environ['PYTHONPATH']}")
    traced = desk.trace("import sitecustomize\nprint(sitecustomize.theirs, sitecustomize.__file__)\n" + WRONG)
    assert traced.stdout == f"here {desk.folder}/site/sitecustomize.py\n"
    assert traced.code == 1


def test_a_module_is_traced_with_dash_m(desk: Desk) -> None:
    desk.write("pkg/__init__.py", "")
    desk.write("pkg/train.py", "import sys\nprint(sys.argv[1:])\n" + WRONG)
    traced = desk.precaudit("trace", "-m", "pkg.train", "--lr", "1")
    assert (traced.code, traced.stdout) == (1, "['--lr', '1']\n")
    assert "running python -m pkg.train --lr 1: " in traced.stderr
    assert traced.report["findings"][0]["path"] == "pkg/train.py"


def test_a_shell_script_is_traced(desk: Desk) -> None:
    desk.write("train.py", WRONG)
    desk.write("run.sh", f"export EXTRA=1\n{sys.executable} train.py\n")
    assert desk.precaudit("trace", "bash", "run.sh").code == 1


def test_a_python_named_by_its_path_is_traced(desk: Desk) -> None:
    desk.write("train.py", WRONG)
    assert desk.precaudit("trace", sys.executable, "-u", "train.py").code == 1


def test_ranks_are_merged_and_a_rank_that_differs_is_found(desk: Desk) -> None:
    desk.write("train.py", "import os, torch\ntorch.train(5, 'bfloat16' if os.environ['RANK'] == '2' else 'float32')\n")
    loop = "for r in 0 1 2 3; do RANK=$r WORLD_SIZE=4 " + sys.executable + " train.py & done; wait"
    traced = desk.precaudit("trace", "sh", "-c", loop)
    assert traced.report["coverage"]["ranks"] == 4
    low = next(f for f in traced.report["findings"] if f["rule"] == "PA301")
    assert (low["ranks"], low["count"]) == ([2], 4)
    difference = next(f for f in traced.report["facts"] if f["kind"] == "ranks_differ")
    assert difference["detail"] == "rank 2 held bfloat16, ranks 0-1, 3 held float32"
    assert next(f for f in traced.report["findings"] if f["rule"] == "PA505")["ranks"] == [2]


def test_a_rank_that_wrote_nothing_is_named(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    traced = desk.trace(CLEAN)
    (note,) = traced.report["coverage"]["notes"]
    assert note.startswith("ranks 1-2 of 3 wrote nothing here")


def test_output_gets_the_same_report(desk: Desk) -> None:
    traced = desk.trace(WRONG, "--output", "out.json")
    assert json.loads((desk.folder / "out.json").read_text()) == traced.report


def test_fail_on_never_leaves_findings_in_the_report_and_exits_0(desk: Desk) -> None:
    traced = desk.trace(WRONG, "--fail-on", "never")
    assert (traced.code, traced.report["status"]) == (0, "findings")


@pytest.mark.parametrize("options", [("--ignore", "PA301"), ("--ignore", "PA3"), ("--only", "loss")])
def test_findings_that_are_not_asked_for_do_not_count(desk: Desk, options: tuple[str, ...]) -> None:
    traced = desk.trace(WRONG, *options)
    assert (traced.code, traced.report["findings"]) == (0, [])


@pytest.mark.parametrize(
    ("only", "count"),
    [(["optimizer state"], 1), (["Optimizer-State"], 1), (["loss,optimizer state"], 1), (["loss optimizer_state"], 1),
     (["norm statistics"], 0), (["gradients", "quantised storage"], 0)],
)  # fmt: skip
def test_roles_can_be_typed_as_they_are_shown(desk: Desk, only: list[str], count: int) -> None:
    traced = desk.trace(WRONG, *(word for role in only for word in ("--only", role)))
    assert len(traced.report["findings"]) == count


@pytest.mark.parametrize(
    ("words", "starts"),
    [(["x.sarif"], '{\n  "$schema"'), (["x.out", "--output-format", "sarif"], '{\n  "$schema"'),
     (["x.html"], "<!doctype html>"), (["x.md"], "## precaudit"), (["x"], '{\n "format_version"'),
     (["x.json", "--output-format", "concise"], "train.py:2")],
)  # fmt: skip
def test_output_is_written_in_the_format_asked_for_or_the_one_its_name_says(
    desk: Desk, words: list[str], starts: str
) -> None:
    traced = desk.trace(WRONG, "--output", *words)
    assert traced.code == 1
    assert (desk.folder / words[0]).read_text().startswith(starts)
    # The terminal has the report for people all the same.
    assert "\nx PA301 low-precision-optimizer-state" in traced.stderr


def test_an_ignore_comment_silences_the_finding_on_its_line(desk: Desk) -> None:
    traced = desk.trace("import torch\ntorch.train(5, 'bfloat16')  # precaudit: ignore[PA301]\n")
    assert (traced.code, traced.report["status"]) == (0, "clean")
    assert [(f["rule"], f["suppressed"]) for f in traced.report["findings"]] == [("PA301", True)]


def test_settings_come_from_pyproject_and_the_command_line_wins(desk: Desk) -> None:
    desk.write("pyproject.toml", "[tool.precaudit]\nignore = ['PA301']\n[tool.precaudit.trace]\nsteps = 4\n")
    traced = desk.trace(WRONG)
    assert traced.code == 0
    assert traced.ours[0] == RUNNING.replace("2 and 3", "2 to 5")
    again = desk.trace(WRONG, "--steps", "1", "--ignore", "PA101")
    assert again.code == 1
    assert again.ours[0] == RUNNING.replace("steps 2 and 3 are", "step 2 is")


def test_per_file_ignores_hold_for_a_trace_too(desk: Desk) -> None:
    desk.write("pyproject.toml", "[tool.precaudit.per-file-ignores]\n'tr*.py' = ['PA3']\n")
    traced = desk.trace(WRONG)
    assert (traced.code, traced.report["findings"]) == (0, [])


def test_a_misspelt_setting_is_met_with_the_nearest_one(desk: Desk) -> None:
    desk.write("pyproject.toml", "[tool.precaudit.trace]\nstpes = 4\n")
    refused = desk.trace(WRONG)
    assert (refused.code, refused.stderr) == (
        2, "precaudit: pyproject.toml: [tool.precaudit.trace] stpes: unknown key; did you mean 'steps'?\n"
    )  # fmt: skip


def test_precaudit_disable_runs_the_command_untraced(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRECAUDIT_DISABLE", "1")
    traced = desk.trace(WRONG + "raise SystemExit(7)\n")
    assert (traced.code, traced.report) == (7, {})
    assert traced.ours == ["precaudit: PRECAUDIT_DISABLE=1: running untraced"]


def test_two_runs_at_once_in_one_folder_both_report(desk: Desk) -> None:
    desk.write("a.py", "import torch, time\ntorch.step()\ntime.sleep(0.3)\ntorch.train(5)\n")
    desk.write("b.py", "import torch, time\ntorch.step()\ntime.sleep(0.3)\ntorch.train(5, 'bfloat16')\n")
    one, two = (desk.start("trace", "--output", f"{name}.json", f"{name}.py") for name in "ab")
    one.communicate()
    two.communicate()
    assert (one.returncode, two.returncode) == (0, 1)
    assert json.loads((desk.folder / "a.json").read_text())["status"] == "clean"
    assert json.loads((desk.folder / "b.json").read_text())["status"] == "findings"
    assert desk.report["status"] in ("clean", "findings")


def test_the_latest_report_stays_out_of_the_users_commits(desk: Desk) -> None:
    desk.trace(CLEAN)
    assert (desk.folder / ".precaudit" / ".gitignore").read_text() == "*\n"


def test_an_unreadable_rank_file_is_a_note(desk: Desk) -> None:
    spoil = "import os, json\nf = json.load(open(os.environ['PRECAUDIT_FOLDER'] + '/settings.json'))['ranks_folder']\n"
    traced = desk.trace(spoil + "open(f + '/rank-1-1.json', 'w').write('{\"format\": 1')\n" + CLEAN)
    assert traced.code == 0
    (note,) = traced.report["coverage"]["notes"]
    assert note.startswith("rank-1-1.json: not a rank file of this precaudit")


def test_a_process_without_torch_is_neither_slowed_nor_recorded(desk: Desk) -> None:
    desk.write("train.py", WRONG)
    quick = "import sys; print(sorted({'importlib.util', 'json', 'typing', 'traceback'} & set(sys.modules)))"
    traced = desk.precaudit("trace", "sh", "-c", f'{sys.executable} -c "{quick}"; {sys.executable} train.py')
    plain = subprocess.run([sys.executable, "-c", quick], capture_output=True, text=True, check=True)
    assert traced.stdout == plain.stdout
    assert traced.report["coverage"]["ranks"] == 1


def test_a_process_that_may_write_no_bytecode_does_not_compile_us(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    source = """
import os, sys, torch
ours = [m for name, m in list(sys.modules.items()) if name.startswith("_precaudit.")]
print(len(ours) > 1 and all(os.path.exists(m.__cached__) for m in ours))
"""
    assert desk.trace(source + WRONG).stdout == "True\n"


def test_a_worker_of_torch_compile_is_left_alone(desk: Desk) -> None:
    desk.write("train.py", WRONG)
    desk.write("compile_worker/__main__.py", "import torch\nprint(torch.on_step)\n")
    traced = desk.precaudit(
        "trace", "sh", "-c", f"{sys.executable} compile_worker/__main__.py; {sys.executable} train.py"
    )
    assert (traced.code, traced.stdout) == (1, "None\n")


def test_spawned_processes_are_traced_too(desk: Desk) -> None:
    source = """
import multiprocessing
def work(rank):
    import torch
    torch.train(5, "bfloat16")
if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=work, args=(0,))
    process.start()
    process.join()
    raise SystemExit(process.exitcode)
"""
    assert desk.trace(source).code == 1


def test_the_environment_of_the_training_may_hold_nothing_of_ours(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "elsewhere"], check=True)
    monkeypatch.setenv("PYTHONPATH", os.environ["PYTHONPATH"].split(os.pathsep)[0])
    probe = "import importlib.util as u\nprint([n for n in ('precaudit', 'pydantic', 'click') if u.find_spec(n)])\n"
    desk.write("train.py", probe + WRONG)
    traced = desk.precaudit("trace", str(desk.folder / "elsewhere" / "bin" / "python"), "train.py")
    assert (traced.code, traced.stdout) == (1, "[]\n")


def test_without_torch_here_the_active_environments_python_is_used(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    from precaudit.launch import command

    monkeypatch.setattr(command, "has_torch", lambda: False)
    desk.write("active/bin/python", "").chmod(0o755)
    active = {"VIRTUAL_ENV": str(desk.folder / "active"), "PATH": ""}
    assert command.python_for_training(active) == str(desk.folder / "active" / "bin" / "python")
    on_path = {"PATH": str(desk.folder / "active" / "bin")}
    assert command.python_for_training(on_path) == str(desk.folder / "active" / "bin" / "python")


def test_help_of_trace_is_one_sentence_and_an_example(desk: Desk) -> None:
    shown = desk.precaudit("trace", "--help")
    assert shown.code == 0
    assert "precaudit trace train.py --lr 1e-4" in shown.stdout


def test_a_closed_pipe_is_quiet(desk: Desk) -> None:
    done = subprocess.run(
        f"{sys.executable} -m precaudit trace --help | true", shell=True, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""


def test_an_internal_error_is_one_line_with_exit_3(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    from precaudit.launch import trace

    def broken(*args: object, **named: object) -> None:
        raise KeyError("surprise")

    monkeypatch.setattr(trace, "trace_command", broken)
    failed = desk.trace(CLEAN)
    assert failed.code == cli.INTERNAL_ERROR == 3
    (line,) = failed.stderr.splitlines()
    assert line.startswith("precaudit: internal error at test_trace.py:")
    assert "PRECAUDIT_TRACEBACK=1" in line


def test_the_folder_of_a_report_names_no_place_of_this_machine(desk: Desk) -> None:
    traced = desk.trace(WRONG)
    assert str(Path.cwd()) not in json.dumps(traced.report["findings"])
