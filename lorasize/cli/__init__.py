"""The command line: parse → verb → render → exit code. The only door to click.

Importing this costs click alone: the verbs, and torch beneath them, are imported inside the commands that need them.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click

from lorasize import __version__
from lorasize.cli.commands import COMMANDS
from lorasize.cli.config import read_config
from lorasize.cli.failures import BROKEN_PIPE, DONE, TERMINATED, Invocation, report_failure
from lorasize.cli.output import silence_stdout

_SPINS = "1000"  # of a thread that waits, before it sleeps: docs/log/speed.md#threads-that-spin-briefly
_EPILOG = """\b
Example:
  lorasize calibrate
  lorasize plan page.md table.jsonl
  lorasize apply
  lorasize verify adapter

Exit codes: 0 done, 1 over budget, 2 usage or input, 3 calibration or plan does not fit, 4 not proven,
5 no rank can recall the corpus, 70 internal error, 130 interrupted.

\b
Completion of commands, options and paths, in the start-up file of your shell:
  bash: eval "$(_LORASIZE_COMPLETE=bash_source lorasize)"
  zsh:  eval "$(_LORASIZE_COMPLETE=zsh_source lorasize)"
  fish: _LORASIZE_COMPLETE=fish_source lorasize | source
"""


@click.group(
    invoke_without_command=True, epilog=_EPILOG,
    context_settings={"auto_envvar_prefix": "LORASIZE", "help_option_names": ["-h", "--help"]},
)  # fmt: skip
@click.version_option(__version__, prog_name="lorasize")
@click.pass_context
def lorasize(context: click.Context) -> int:
    """How big must a LoRA adapter be to hold this text word for word, and did it?

    Options may also be set as LORASIZE_… in the environment (LORASIZE_MODEL, LORASIZE_DEVICE), and those that
    `lorasize config` lists in lorasize.toml or under [tool.lorasize] in pyproject.toml. The command line wins, then
    the environment, then lorasize.toml.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
        return DONE
    context.obj.command = context.invoked_subcommand
    chosen = read_config(Path())
    context.default_map = {name: chosen for name in lorasize.commands}
    return DONE


for _command in COMMANDS:
    _command.context_settings["auto_envvar_prefix"] = "LORASIZE"
    lorasize.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; `lorasize` on the shell calls this."""
    if "_LORASIZE_COMPLETE" in os.environ:
        lorasize.main(prog_name="lorasize")
    _wait_briefly()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    invocation = Invocation(arguments=tuple(arguments))
    try:
        with _terminable(), _quiet_warnings():
            code = _run(arguments, invocation)
            sys.stdout.flush()
        return code
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        if _reader_is_gone(error):
            silence_stdout()
            return BROKEN_PIPE
        return report_failure(error, invocation)


def _wait_briefly() -> None:
    """Have threads that wait for each other spin for some microseconds, unless the user says how they should wait.

    Read once, when torch loads. Long spinning slows a step tenfold once the cores are shared; none at all slows it by a
    fifth where they are not.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)


def _run(arguments: Sequence[str], invocation: Invocation) -> int:
    """The command's exit code. Not by click's own `main`, which hides where a broken pipe came from."""
    try:
        with lorasize.make_context("lorasize", list(arguments), obj=invocation) as context:
            returned = lorasize.invoke(context)
    except click.exceptions.Exit as done:
        return done.exit_code
    return returned if isinstance(returned, int) else DONE


def _reader_is_gone(error: BaseException) -> bool:
    """Whether it was our own output that found its pipe closed, and not, say, the input of a process we started."""
    if isinstance(error, SystemExit):  # rich leaves with 1
        return error.code == 1
    writers = {frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)}
    return isinstance(error, BrokenPipeError) and ("echo" in writers or "_run" not in writers)


@contextmanager
def _quiet_warnings() -> Iterator[None]:
    """Keep libraries' warnings from users who did not ask for them."""
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        yield


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM unwind the stack, so that half-written folders are taken away."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(TERMINATED)
