"""The `precaudit` command: finds the subcommand, and turns every error into one line and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from importlib import import_module
from typing import NoReturn

import click

from precaudit import __version__
from precaudit.errors import INTERNAL_ERROR, PrecauditError, internal_error

COMMANDS: Mapping[str, str] = {
    "check": "precaudit.commands.check:check",
    "trace": "precaudit.commands.trace:trace",
    "audit": "precaudit.commands.audit:audit",
    "watch": "precaudit.commands.watch:watch",
    "preflight": "precaudit.commands.preflight:preflight",
    "whatif": "precaudit.commands.whatif:whatif",
    "lock": "precaudit.commands.lock:lock",
    "diff": "precaudit.commands.diff:diff",
    "checkpoint": "precaudit.commands.checkpoint:checkpoint",
    "report": "precaudit.commands.report:report",
    "runs": "precaudit.commands.runs:runs",
    "rules": "precaudit.commands.rules:rules",
    "baseline": "precaudit.commands.baseline:baseline",
    "mcp": "precaudit.commands.mcp:mcp",
    "server": "precaudit.commands.server:server",
    "doctor": "precaudit.commands.doctor:doctor",
}
"""Every subcommand, and where its click object is; a module is imported only when its command is asked for."""


class LazyCommands(click.Group):
    """Imports a subcommand when it is named, so that `--version` and `check` never pay for what `trace` needs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        command = getattr(import_module(module), name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        word = args[0]
        if word not in COMMANDS and not word.startswith("-"):
            import difflib

            near = difflib.get_close_matches(word, COMMANDS, n=1)
            if word.endswith(".py"):
                hint = f'did you mean "precaudit trace {word}" or "precaudit check {word}"?'
            elif near:
                hint = f"did you mean '{near[0]}'?"
            else:
                hint = f"commands: {', '.join(COMMANDS)}"
            raise click.UsageError(f"'{word}' is not a command; {hint}")
        return super().resolve_command(ctx, args)


@click.group(
    cls=LazyCommands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="precaudit", message="%(prog)s %(version)s")
def precaudit() -> None:
    """Audit the numeric precision of PyTorch training.

    \b
    precaudit trace train.py --lr 1e-4    run the training, watch two steps, report
    precaudit check src/                  read the source, run nothing
    precaudit checkpoint model.pt         read what was saved, run nothing of it
    """


def main() -> NoReturn:
    """Runs the command line; leaves with 0 clean, 1 findings, 2 usage, 3 internal error, 5 inconclusive, or as the
    traced command did."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """The exit code for these arguments; what a user has to read is on stderr by then."""
    try:
        code = precaudit.main(args=arguments or ["--help"], prog_name="precaudit", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except click.ClickException as error:
        return _complain(_one_line(error), error.exit_code if error.exit_code > 1 else 2)
    except click.Abort:
        return 130
    except PrecauditError as error:
        return _complain(str(error), error.exit_code)
    except BrokenPipeError:
        # The reader has gone (`precaudit rules | head`): what is left in the buffer has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        return _complain(internal_error(error), INTERNAL_ERROR)


def _complain(message: str, code: int) -> int:
    click.echo(f"precaudit: {message}", err=True)
    return code


def _one_line(error: click.ClickException) -> str:
    """click's words, without its usage block: where, what, and the way to the help page."""
    message = " ".join(error.format_message().split()).rstrip(".")
    if isinstance(error, click.UsageError) and error.ctx is not None:
        return f'{message[:1].lower()}{message[1:]}; see "{error.ctx.command_path} --help"'
    return f"{message[:1].lower()}{message[1:]}"
