"""Every way in which a trace can go wrong, and the one line with the way out that the user gets for it."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from desk import Desk

from precaudit import disk
from precaudit.launch import child
from precaudit.runtime import sitecustomize

CLEAN = "import torch\ntorch.train(5)\n"
WRONG = "import torch\ntorch.train(5, 'bfloat16')\n"
UNSEEN = (
    "if it starts Python with -I, -E or -S or sets PYTHONPATH anew, "
    'write "python -m precaudit.run" for "python" there and add --no-inject'
)
UNFINISHED = "import os, signal, sys, torch\ntorch.step('bfloat16')\n"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], 'nothing to trace; name a script or a command: "precaudit trace train.py"'),
        (["trian.py"], "trian.py: no such file; did you mean train.py?"),
        (["missing/train.py"], "missing/train.py: no such file; there is no folder missing"),
        (["pkg"], 'pkg: is a directory; name the script in it, or trace a package with "precaudit trace -m pkg"'),
        (["broken.py"], "broken.py:2:5: not valid Python: unmatched ')'"),
        (["image.py"], "image.py: not valid Python: source code string cannot contain null bytes"),
        (["run.sh"], 'run.sh: not a Python script (*.py) and not executable; start it with bash: '
                     '"precaudit trace bash run.sh"'),
        (["notes.txt"], 'notes.txt: not a Python script (*.py) and not executable; name the program that runs it: '
                        '"precaudit trace PROGRAM notes.txt"'),
        (["sh run.sh"], 'sh run.sh: a command is written without quotes: "precaudit trace sh run.sh"'),
        (["torchrum", "train.py"], "torchrum: no such command on PATH and no such file"),
        (["./run"], "./run: no such file; did you mean run.sh?"),
        (["-m"], '-m: the module is missing; write "precaudit trace -m package.train"'),
        (["--stpes", "3", "train.py"], '--stpes: no such option of trace; see "precaudit trace --help"'),
        (["--steps", "0", "train.py"], "invalid value for '--steps': 0 is not in the range x>=1; "
                                       'see "precaudit trace --help"'),
        (["--steps", "x", "train.py"], "invalid value for '--steps': 'x' is not a valid whole number; "
                                       'see "precaudit trace --help"'),
        (["--select", "ZZ9", "train.py"], "no rule matches 'ZZ9'; run \"precaudit rules\" for the list"),
        (["--only", "optimiser_state", "train.py"], "--only: 'optimiser_state' is not a role; "
                                                    "did you mean 'optimizer_state'?"),
        (["--output", "nowhere/out.json", "train.py"], "nowhere/out.json: there is no folder nowhere; make it first"),
        (["--output", "run.sh/out.json", "train.py"], "run.sh/out.json: run.sh is not a folder; choose another place"),
        (["--output", "pkg", "train.py"], "pkg: is a directory; name the file the report is to have"),
    ],
)  # fmt: skip
def test_a_command_that_cannot_start_is_refused_before_anything_runs(desk: Desk, words: list[str], line: str) -> None:
    desk.write("train.py", CLEAN)
    desk.write("pkg/__init__.py", "")
    desk.write("broken.py", "x = 1\ny = )\n")
    desk.write("image.py", "\0PNG")
    desk.write("run.sh", "python train.py\n")
    desk.write("notes.txt", "")
    refused = desk.precaudit("trace", *words)
    assert (refused.code, refused.stdout, refused.report) == (2, "", {})
    # Python 3.12 words the null byte differently.
    assert refused.stderr.replace("source code cannot", "source code string cannot") == f"precaudit: {line}\n"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["tarce"], "'tarce' is not a command; did you mean 'trace'?"),
        (["train.py"], "'train.py' is not a command; did you mean \"precaudit trace train.py\" or "
                       '"precaudit check train.py"?'),
        (["--frobnicate"], "no such option '--frobnicate'; see \"precaudit --help\""),
    ],
)  # fmt: skip
def test_a_word_that_is_no_command_is_met_with_the_nearest_one(desk: Desk, words: list[str], line: str) -> None:
    refused = desk.precaudit(*words)
    assert (refused.code, refused.stderr) == (2, f"precaudit: {line}\n")


@pytest.mark.parametrize(
    ("ending", "code", "how"),
    [
        ("sys.exit(7)", 7, "ended with exit code 7"),
        ("raise ValueError('shape')", 1, "ended with exit code 1"),
        ("os._exit(9)", 9, "ended with exit code 9"),
        ("os.kill(os.getpid(), signal.SIGTERM)", 143, "was ended by SIGTERM (exit code 143)"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, "was ended by SIGKILL (exit code 137)"),
    ],
)
def test_a_script_that_fails_early_keeps_its_code_and_its_findings(
    desk: Desk, ending: str, code: int, how: str
) -> None:
    traced = desk.trace(UNFINISHED + ending + "\n")
    assert traced.code == traced.report["exit_code"] == code
    assert traced.report["status"] == "findings"
    assert traced.report["findings"][0]["rule"] == "PA301"
    assert traced.ours[-1] == (
        f"precaudit: python train.py: {how} before the traced steps were over; "
        "the report holds what was seen until then"
    )


def test_a_script_that_fails_early_with_nothing_wrong_seen_is_script_failed(desk: Desk) -> None:
    traced = desk.trace("import torch\ntorch.step()\nraise SystemExit(7)\n")
    assert (traced.code, traced.report["status"]) == (7, "script-failed")


def test_a_script_that_fails_before_it_trains_says_so_in_one_line(desk: Desk) -> None:
    traced = desk.trace("import torch\nraise SystemExit(7)\n")
    assert (traced.code, traced.report["status"]) == (7, "script-failed")
    assert traced.stderr.splitlines() == [
        "precaudit: running python train.py: steps 2 and 3 are watched, then it is stopped (--keep-going: it runs on)",
        "precaudit: python train.py: ended with exit code 7 before any training was seen",
    ]


def test_a_script_that_ends_before_the_window_does_is_never_green(desk: Desk) -> None:
    traced = desk.trace("import torch\ntorch.step()\n")
    assert (traced.code, traced.report["status"]) == (5, "inconclusive")
    assert "inconclusive: the run ended before the traced steps were over; until then no errors" in " ".join(
        traced.stderr.split()
    )
    assert traced.ours[-1] == (
        "precaudit: python train.py: no step was traced: it took 1 optimizer step, and the trace needs 2 more after "
        "the first; let it take at least 3, or trace from the first on with --skip 0 --steps 1"
    )
    assert desk.trace("import torch\ntorch.step('bfloat16')\n").code == 1


def test_a_driver_that_fails_because_we_stopped_its_training_does_not_decide(desk: Desk) -> None:
    desk.write("train.py", CLEAN)
    traced = desk.precaudit("trace", "sh", "-c", f"{sys.executable} train.py; test -f last.pt")
    assert (traced.code, traced.report["status"], traced.report["exit_code"]) == (0, "clean", 1)
    assert "after precaudit had stopped its training; that is the stop, not a failure of the training" in traced.stderr


def test_a_run_that_goes_on_and_then_fails_keeps_its_own_code(desk: Desk) -> None:
    traced = desk.trace(CLEAN + "raise SystemExit(7)\n", "--keep-going")
    assert (traced.code, traced.report["status"]) == (7, "script-failed")
    assert traced.ours[-1] == "precaudit: python train.py: ended with exit code 7, after the traced steps"


def test_a_command_that_never_trains_is_inconclusive(desk: Desk) -> None:
    traced = desk.trace("import torch\n")
    assert (traced.code, traced.report["status"]) == (5, "inconclusive")
    assert traced.ours[-1] == (
        "precaudit: python train.py: no backward and no optimizer step was seen; "
        f"trace a command that trains at least one step ({UNSEEN})"
    )


def test_a_command_without_torch_is_inconclusive(desk: Desk) -> None:
    traced = desk.trace("print('hello')\n")
    assert (traced.code, traced.report["status"]) == (5, "inconclusive")
    assert traced.ours[-1] == (
        "precaudit: python train.py: no process of it was seen to import torch; "
        f"trace the command that trains ({UNSEEN})"
    )


def test_a_command_that_never_steps_is_inconclusive(desk: Desk) -> None:
    seen = {"format": 1, "status": "watching", "facts": [{"kind": "holds", "role": "loss", "dtype": "float32"}]}
    write = "import json, os\nf = json.load(open(os.environ['PRECAUDIT_FOLDER'] + '/settings.json'))['ranks_folder']\n"
    traced = desk.trace(f"import torch\n{write}open(f + '/rank-0-1.json', 'w').write({json.dumps(seen)!r})\n")
    assert (traced.code, traced.report["status"]) == (5, "inconclusive")
    assert traced.ours[-1] == (
        "precaudit: python train.py: ended before an optimizer step was taken; let it train at least 3 steps"
    )


@pytest.mark.parametrize("command", ["-I train.py", "-E train.py", "-S train.py"])
def test_a_python_that_ignores_our_folder_is_named_with_the_way_out(desk: Desk, command: str) -> None:
    desk.write("train.py", "print('hello')\n")
    traced = desk.precaudit("trace", sys.executable, *command.split())
    assert (traced.code, traced.report["status"]) == (5, "inconclusive")
    assert traced.ours[-1] == (f"precaudit: {sys.executable} {command}: no Python that it runs could be seen; {UNSEEN}")


def test_a_script_that_sets_pythonpath_anew_is_named_with_the_way_out(desk: Desk) -> None:
    desk.write("train.py", "print('hello')\n")
    traced = desk.precaudit("trace", "sh", "-c", f"PYTHONPATH=src {sys.executable} train.py")
    assert traced.code == 5
    assert traced.ours[-1].endswith(f": no Python that it runs could be seen; {UNSEEN}")


def test_a_driver_that_starts_its_training_out_of_sight_is_told_the_way_out(desk: Desk) -> None:
    desk.write("train.py", CLEAN)
    launch = "import subprocess, sys\nsubprocess.run([sys.executable, '-I', '-c', 'print(1)'], check=True)\n"
    traced = desk.trace(launch)
    assert traced.code == 5
    assert traced.ours[-1].endswith(f"({UNSEEN})")


def test_a_python_without_torch_is_named(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "bare"], check=True)
    monkeypatch.delenv("PYTHONPATH")
    desk.write("train.py", CLEAN)
    python = str(desk.folder / "bare" / "bin" / "python")
    traced = desk.precaudit("trace", python, "train.py")
    assert (traced.code, traced.report["status"]) == (1, "script-failed")
    assert traced.ours[-1] == (
        f"precaudit: {python} train.py: {python} has no torch; install it there, or name the Python that has it: "
        '"precaudit trace /path/to/python train.py"'
    )


def test_a_torch_that_is_too_old_is_named(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STANDIN_TORCH", "2.3.1+cu118")
    traced = desk.trace(WRONG + "print('undisturbed')\n")
    assert (traced.code, traced.stdout, traced.report["status"]) == (5, "undisturbed\n", "inconclusive")
    assert traced.ours[-1] == (
        "precaudit: python train.py: torch 2.3.1+cu118 cannot be traced; install torch 2.4 or newer there"
    )


@pytest.mark.parametrize(
    ("version", "number"), [("2.4.0a0+git1", (2, 4)), ("2.13.0", (2, 13)), ("1.13.1", (1, 13)), ("odd", (2, 4))]
)
def test_torch_versions_are_read(version: str, number: tuple[int, int]) -> None:
    assert sitecustomize.release(version) == number


def test_a_fault_of_ours_never_reaches_the_program(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STANDIN_FAULT", "1")
    traced = desk.trace(CLEAN + "print('undisturbed')\n")
    assert (traced.code, traced.stdout) == (3, "undisturbed\n")
    assert traced.ours[-1] == (
        "precaudit: python train.py: precaudit's own tracer failed in it: RuntimeError: the stand-in broke; "
        "this is a bug of precaudit: please report it"
    )
    assert "Traceback" not in traced.stderr


def test_timeout_ends_the_command_and_all_it_started(desk: Desk) -> None:
    desk.write("train.py", "import os, time, torch\ntorch.step()\nopen('pid', 'w').write(str(os.getpid()))\n"
                           "time.sleep(60)\n")  # fmt: skip
    began = time.monotonic()
    traced = desk.precaudit("trace", "--timeout", "1", "sh", "-c", f"{sys.executable} train.py; true")
    assert time.monotonic() - began < 10
    assert (traced.code, traced.report["status"]) == (5, "inconclusive")
    assert "stopped by --timeout after 1 s with 0 of 2 steps traced; give it more time" in traced.ours[-1]
    assert not child._alive(int((desk.folder / "pid").read_text()))


def await_file(path: Path) -> None:
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


LINGERING = """
import signal, sys, time, torch
torch.step('bfloat16')
try:
    open('ready', 'w').close()
    time.sleep(60)
except KeyboardInterrupt:
    print('interrupted', file=sys.stderr)
    sys.exit(4)
"""


def test_ctrl_c_reaches_the_command_and_the_report_is_still_written(desk: Desk) -> None:
    desk.write("train.py", LINGERING)
    traced = desk.start("trace", "train.py", start_new_session=True)
    await_file(desk.folder / "ready")
    os.killpg(traced.pid, signal.SIGINT)
    _, err = traced.communicate(timeout=20)
    assert traced.returncode == 4
    assert "interrupted" in err
    assert desk.report["status"] == "findings"


def test_sigterm_is_passed_on_and_the_report_is_still_written(desk: Desk) -> None:
    desk.write("train.py", LINGERING)
    traced = desk.start("trace", "train.py")
    await_file(desk.folder / "ready")
    traced.send_signal(signal.SIGTERM)
    traced.communicate(timeout=20)
    assert traced.returncode == 143
    assert desk.report["exit_code"] == 143
    assert desk.report["status"] == "findings"


def test_the_command_has_the_signal_handling_it_would_have_without_us(desk: Desk) -> None:
    show = "import signal\nprint([signal.getsignal(n) for n in (2, 13, 15, 1)])\n"
    desk.write("train.py", show)
    plain = subprocess.run([sys.executable, "train.py"], capture_output=True, text=True, check=True)
    assert desk.precaudit("trace", "train.py").stdout == plain.stdout


def test_a_folder_that_takes_no_report_is_one_line_and_the_findings_still_decide(desk: Desk) -> None:
    desk.write(".precaudit", "a file where the folder should be")
    traced = desk.trace(WRONG)
    assert traced.code == 1
    assert (
        "precaudit: .precaudit/latest/report.json: cannot be written: .precaudit is not a folder; "
        "choose another folder with --output-dir or PRECAUDIT_OUTPUT_DIR"
    ) in traced.ours
    # Nothing was written that a next command could show.
    assert "next:" not in traced.stderr


def test_on_a_full_disk_the_old_report_survives(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    old = desk.write("out.json", "old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(disk.os, "fsync", full)
    traced = desk.trace(WRONG, "--output", "out.json")
    assert (traced.code, old.read_text()) == (2, "old")
    assert traced.ours[-1] == (
        "precaudit: out.json: cannot be written: No space left on device; the older report there is unchanged"
    )
    assert sorted(p.name for p in desk.folder.iterdir()) == [".precaudit", "out.json", "train.py"]


def test_a_device_is_written_to_and_never_replaced(desk: Desk) -> None:
    os.mkfifo(desk.folder / "pipe")
    reader = subprocess.Popen(["cat", "pipe"], stdout=subprocess.PIPE, text=True)
    traced = desk.trace(WRONG, "--output", "pipe")
    out, _ = reader.communicate(timeout=20)
    assert json.loads(out) == traced.report
    assert (desk.folder / "pipe").is_fifo()


def test_a_link_to_a_report_stays_a_link(desk: Desk) -> None:
    target = desk.write("target.json", "old")
    (desk.folder / "link.json").symlink_to(target)
    traced = desk.trace(WRONG, "--output", "link.json")
    assert (desk.folder / "link.json").is_symlink()
    assert json.loads(target.read_text()) == traced.report


def test_a_report_that_grows_past_the_file_size_limit_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")
    program = (
        "import resource, signal, sys; from pathlib import Path; from precaudit.launch import save;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, (512, {resource.RLIM_INFINITY}));"
        "from precaudit.errors import OutputError\n"
        f"try: save.write_named(Path({str(path)!r}), 'x' * 4096)\n"
        "except OutputError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("cannot be written: File too large; the older report there is unchanged\n")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_temporary_folder_is_one_line(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    from precaudit.launch import bootstrap

    def full(prefix: str) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(bootstrap.tempfile, "mkdtemp", full)
    refused = desk.trace(CLEAN)
    assert refused.code == 2
    assert refused.ours[-1].endswith(
        "no folder can be made there: No space left on device; set TMPDIR to a writable folder"
    )
