"""`python -m precaudit.run`: the trace behind a launcher, with the script run as Python itself would run it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from desk import Desk

WRONG = "import torch\ntorch.train(5, 'bfloat16')\n"

EXACT = """
import pickle, sys, __main__
class Model: pass
print(__name__, __file__, __spec__ and __spec__.name, __package__, sys.argv, sys.path, sorted(vars(__main__)))
print(type(pickle.loads(pickle.dumps(Model()))).__module__)
def fail():
    {}["the traceback too"]
if "fail" in sys.argv: fail()
if "exit" in sys.argv: sys.exit("a message")
"""


def test_a_script_that_does_not_compile_looks_as_under_plain_python(desk: Desk) -> None:
    desk.write("train.py", "x = )\n")
    plain = subprocess.run([sys.executable, "train.py"], capture_output=True, text=True, check=False)
    behind = [sys.executable, "-m", "precaudit.run", "train.py"]
    environment = {**os.environ, "RANK": "1"}
    traced = subprocess.run(behind, capture_output=True, text=True, check=False, env=environment)
    assert (traced.returncode, traced.stderr) == (plain.returncode, plain.stderr)


@pytest.mark.parametrize("form", [["train.py"], ["-m", "train"]], ids=" ".join)
@pytest.mark.parametrize("ending", ["end", "fail", "exit"])
def test_the_script_sees_what_it_sees_under_plain_python(desk: Desk, form: list[str], ending: str) -> None:
    desk.write("train.py", EXACT)
    words = [*form, "--steps", "7", ending]
    plain = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    behind = [sys.executable, "-m", "precaudit.run", *words]
    environment = {**os.environ, "RANK": "1"}
    traced = subprocess.run(behind, capture_output=True, text=True, check=False, env=environment)
    assert traced.stdout == plain.stdout
    assert traced.stderr == plain.stderr
    assert (desk.folder / ".precaudit" / ".gitignore").read_text() == "*\n"
    assert traced.returncode == plain.returncode


def test_below_trace_with_no_inject_it_reports_to_that_parent(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.write("train.py", WRONG)
    # A launcher that sets PYTHONPATH anew; here it has to name the stand-in torch.
    monkeypatch.setenv("PLACES", os.environ["PYTHONPATH"])
    command = f"PYTHONPATH=$PLACES {sys.executable} -m precaudit.run train.py"
    traced = desk.precaudit("trace", "--no-inject", "sh", "-c", command)
    assert (traced.code, traced.report["findings"][0]["rule"]) == (1, "PA301")
    assert [line.partition(": steps")[0] for line in traced.ours] == [
        f"precaudit: running sh -c {command}",
        f"precaudit: sh -c {command} was stopped on purpose: nothing later ran, no checkpoint was saved by it",
    ]


def test_no_inject_leaves_pythonpath_alone(desk: Desk) -> None:
    desk.write("train.py", "import os\nprint(os.environ['PYTHONPATH'])\n")
    traced = desk.precaudit("trace", "--no-inject", "train.py")
    assert traced.stdout == os.environ["PYTHONPATH"] + "\n"
    assert traced.code == 5


def test_with_neither_launcher_nor_parent_it_is_precaudit_trace(desk: Desk) -> None:
    desk.write("train.py", "import sys\nprint(sys.argv)\n")
    done = subprocess.run(
        [sys.executable, "-m", "precaudit.run", "--steps", "1", "train.py", "--lr", "1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "['train.py', '--lr', '1']\n"
    assert done.returncode == 5
    assert desk.report["status"] == "inconclusive"
    assert done.stderr.startswith("precaudit: running ")


def test_precaudit_disable_runs_the_script_alone(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRECAUDIT_DISABLE", "1")
    desk.write("train.py", "print('alone')\nraise SystemExit(7)\n")
    done = subprocess.run(
        [sys.executable, "-m", "precaudit.run", "train.py"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (7, "alone\n", "")


def test_where_nothing_can_be_written_the_training_runs_all_the_same(desk: Desk) -> None:
    desk.write(".precaudit", "a file where the folder should be")
    desk.write("train.py", "print('trained')\n")
    environment = {**os.environ, "RANK": "0", "MASTER_PORT": "29500"}
    done = subprocess.run(
        [sys.executable, "-m", "precaudit.run", "train.py"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert (done.returncode, done.stdout) == (0, "trained\n")
    assert done.stderr.startswith("precaudit: .precaudit/ranks/run-29500-")
    assert done.stderr.endswith(
        ": cannot be written: Not a directory; running untraced; PRECAUDIT_OUTPUT_DIR names another folder\n"
    )


@pytest.mark.parametrize("form", [["train.py"], ["-m", "train"]], ids=" ".join)
def test_the_rank_that_a_launcher_puts_before_the_script_is_the_scripts(desk: Desk, form: list[str]) -> None:
    desk.write("train.py", "import sys\nprint(sys.argv[1:])\n")
    done = subprocess.run(
        [sys.executable, "-m", "precaudit.run", "--local_rank=1", *form, "--lr", "1"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "RANK": "1"},
    )
    assert (done.returncode, done.stdout) == (0, "['--local_rank=1', '--lr', '1']\n"), done.stderr


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], 'nothing to run; name a script: "python -m precaudit.run train.py"'),
        (["missing.py"], "missing.py: cannot be read: No such file or directory"),
        (["--steps", "x", "train.py"], "--steps: 'x' is not a number of steps"),
        (
            ["--output", "x", "train.py"],
            "--output: no such option of precaudit.run; it has --skip, --steps, --keep-going and --watch, and "
            '"precaudit trace --no-inject python -m precaudit.run train.py" has the others',
        ),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_line(desk: Desk, words: list[str], line: str) -> None:
    environment = {**os.environ, "RANK": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "precaudit.run", *words], capture_output=True, text=True, check=False, env=environment
    )
    assert (done.returncode, done.stderr) == (2, f"precaudit: {line}\n")
