"""`python -m precaudit.run train.py`: the trace from behind a launcher, where PYTHONPATH cannot be set for the command.

    torchrun --nproc-per-node 2 -m precaudit.run train.py
    precaudit trace --no-inject bash run.sh                 # where run.sh starts python -I -m precaudit.run train.py

Standard library only, up to the point where torch comes up. The script runs in this process: `__main__`, `sys.argv`,
`sys.path[0]`, tracebacks and exit codes are those of `python train.py`. Processes that it spawns itself are not traced.

Below `precaudit trace --no-inject` the observations go to that parent; below another launcher into `.precaudit/ranks/`
(or below PRECAUDIT_OUTPUT_DIR), for `precaudit report` to judge; with neither, this becomes `precaudit trace`.
"""

from __future__ import annotations

import io
import json
import os
import runpy
import sys
import types
from collections.abc import Sequence
from importlib.machinery import SourceFileLoader
from typing import NoReturn

from precaudit.runtime.sitecustomize import watch

FOLDER = "PRECAUDIT_FOLDER"
"""The private folder of the `precaudit trace` above this process."""

RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID", "PMI_RANK")
"""Any of them says that a launcher started this process."""

OPTIONS = {"--skip": "skip", "--steps": "steps"}
"""Understood here too, below a launcher; otherwise `precaudit trace` has them all."""


LAUNCHERS_OWN = ("--local_rank", "--local-rank")
"""deepspeed and the old torch.distributed.launch put it before all arguments; it is the script's first one."""


def main(arguments: Sequence[str]) -> None:
    """Runs the script, or `-m module`, that the arguments name, with the tracer waiting for torch."""
    settings, command = _command(arguments)
    folder = os.environ.get(FOLDER, "")
    if os.environ.get("PRECAUDIT_DISABLE") != "1":
        if os.path.isdir(folder):  # on another node than the parent there is no such folder
            watch(folder, "_precaudit")
        elif any(name in os.environ for name in RANK_VARIABLES):
            _watch_for_later(settings)
        else:
            _trace(arguments[: len(arguments) - len(command)], command)
    run_untouched(command)


def _trace(options: Sequence[str], command: Sequence[str]) -> NoReturn:
    from precaudit.cli import run

    sys.exit(run(["trace", "--no-inject", *options, sys.executable, "-m", "precaudit.run", *command]))


def _command(arguments: Sequence[str]) -> tuple[dict[str, object], list[str]]:
    """Our own leading options, and the rest: the script and what belongs to it."""
    settings: dict[str, object] = {}
    theirs = []
    rest = list(arguments)
    while rest and rest[0].startswith("-") and rest[0] != "-m":
        word, _, value = rest.pop(0).partition("=")
        if word == "--":
            break
        if word in LAUNCHERS_OWN:
            theirs.append(f"{word}={value}" if value else word)
            continue
        if word in ("--keep-going", "--watch"):
            settings["keep_going"] = True
            settings["looks_on"] = word == "--watch"
        elif word in OPTIONS:
            value = value or (rest.pop(0) if rest else "")
            if not value.isdigit():
                _refuse(f"{word}: '{value}' is not a number of steps")
            settings[OPTIONS[word]] = int(value)
        else:
            _refuse(
                f"{word}: no such option of precaudit.run; it has {', '.join(OPTIONS)}, --keep-going and --watch, "
                'and "precaudit trace --no-inject python -m precaudit.run train.py" has the others'
            )
    if not rest or rest == ["-m"]:
        _refuse('nothing to run; name a script: "python -m precaudit.run train.py"')
    name = 2 if rest[0] == "-m" else 1
    return settings, [*rest[:name], *theirs, *rest[name:]]


def _refuse(message: str) -> NoReturn:
    _say(message)
    sys.exit(2)


def _say(message: str) -> None:
    print(f"precaudit: {message}", file=sys.stderr, flush=True)


def _watch_for_later(settings: dict[str, object]) -> None:
    """Lets the tracer leave its observations where all ranks of this launch on this node leave theirs.

    They find the folder without talking: it is named for the launcher, their common parent.
    """
    run = os.environ.get("TORCHELASTIC_RUN_ID") or os.environ.get("SLURM_JOB_ID") or "run"
    name = "".join(c if c.isalnum() else "-" for c in f"{run}-{os.environ.get('MASTER_PORT', '')}-{os.getppid()}")
    home = os.environ.get("PRECAUDIT_OUTPUT_DIR") or ".precaudit"
    shown = os.path.join(home, "ranks", name)
    first = os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0")) == "0"
    try:
        folder = os.path.abspath(shown)
        os.makedirs(folder, exist_ok=True)
        defaults = {"skip": 1, "steps": 2, "attempts": 25, "keep_going": False, "values": "sample"}
        _write(os.path.join(folder, "settings.json"), {**defaults, **settings, "ranks_folder": folder})
        if home == ".precaudit" and not os.path.exists(os.path.join(home, ".gitignore")):
            _write(os.path.join(home, ".gitignore"), "*\n")
    except OSError as error:
        if first:
            _say(
                f"{shown}: cannot be written: {error.strerror}; running untraced; "
                "PRECAUDIT_OUTPUT_DIR names another folder"
            )
        return
    if first:
        _say(f"tracing; once the run has ended: precaudit report {shown}")
    watch(folder, "precaudit")


def _write(path: str, content: str | dict[str, object]) -> None:
    """Writes a small file in one move, for every rank writes the same one at the same time."""
    text = content if isinstance(content, str) else json.dumps({**content, "cwd": os.getcwd()})
    temporary = f"{path}-{os.getpid()}"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(temporary, path)


def run_untouched(command: Sequence[str]) -> None:
    """Runs `train.py …` or `-m module …` in this process as Python itself would, in a `__main__` of its own."""
    ours = sys.modules["__main__"]
    program = types.ModuleType("__main__")
    program.__dict__["__builtins__"] = __builtins__
    if "__annotations__" in vars(ours):  # every __main__ has it up to Python 3.13
        program.__annotations__ = {}
    sys.modules["__main__"] = program
    try:
        if command[0] == "-m":
            sys.argv[:] = list(command[1:])
            # What `python -m` calls; the public run_module makes a module that pickle cannot find again.
            runpy._run_module_as_main(command[1])  # type: ignore[attr-defined]
        else:
            _run_script(command, program)
    except SystemExit:
        raise
    except Exception as error:
        # As the interpreter would, less the frames of this file; a script that does not compile has no others.
        frame = error.__traceback__
        while frame is not None and frame.tb_frame.f_globals is globals():
            frame = frame.tb_next
        error.__traceback__ = frame
        sys.excepthook(type(error), error, frame)
        sys.exit(1)
    finally:
        # Only kept alive until here: its functions are still on the stack.
        del ours


def _run_script(command: Sequence[str], program: types.ModuleType) -> None:
    sys.argv[:] = list(command)
    script = os.path.abspath(command[0])
    try:
        with io.open_code(script) as file:
            source = file.read()
    except OSError as error:
        _refuse(f"{command[0]}: cannot be read: {error.strerror}")
    if not getattr(sys.flags, "safe_path", False) and not sys.flags.isolated:
        sys.path[0] = os.path.dirname(os.path.realpath(script))
    program.__file__ = script
    program.__loader__ = SourceFileLoader("__main__", script)
    program.__spec__ = None
    program.__dict__["__cached__"] = None
    exec(compile(source, script, "exec", dont_inherit=True), program.__dict__)


if __name__ == "__main__":
    main(sys.argv[1:])
