"""The one place where an exception becomes a message, a hint and an exit code."""

from __future__ import annotations

import os
import platform
import shlex
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from lorasize import __version__, errors
from lorasize.cli.config import read_places, setter, variable
from lorasize.cli.output import say

DONE, OVER_BUDGET, USAGE, CALIBRATION, NOT_PROVEN, INFEASIBLE, INTERNAL = 0, 1, 2, 3, 4, 5, 70
INTERRUPTED, BROKEN_PIPE, TERMINATED = 130, 141, 143

EXIT_CODES: tuple[tuple[type[errors.LorasizeError], int], ...] = (
    (errors.CorpusError, USAGE),
    (errors.ModelError, USAGE),
    (errors.CalibrationError, CALIBRATION),
    (errors.StalePlanError, CALIBRATION),
    (errors.FitError, CALIBRATION),
    (errors.InfeasibleCorpusError, INFEASIBLE),
    (errors.TrainingDivergedError, NOT_PROVEN),
    (errors.LorasizeError, USAGE),
)
_LONGEST = 900  # characters of a message: a damaged file may name anything
_LEFT = {
    "calibrate": "interrupted: the same command goes on where it stopped",
    "apply": "interrupted: the same command goes on where it stopped; the adapter folder is as it was",
    "demo": "interrupted: the same command goes on; finished probes are kept",
}


@dataclass
class Invocation:
    """What is known of the command under way, for hints."""

    command: str = ""
    model: str | None = None
    corpus: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()

    def has(self, option: str) -> bool:
        """Whether the option stands on the command line."""
        return any(argument.partition("=")[0] == option for argument in self.arguments)


def report_failure(error: BaseException, invocation: Invocation) -> int:
    """Tell the user what went wrong, and return the exit code."""
    if isinstance(error, errors.LorasizeError):
        _tell(str(error), hint(error, invocation))
        return next(code for kind, code in EXIT_CODES if isinstance(error, kind))
    if isinstance(error, click.ClickException):
        return _usage(error, invocation)
    if isinstance(error, KeyboardInterrupt | click.Abort):
        click.echo(err=True, nl=sys.stderr.isatty())  # ends the line on which the terminal shows ^C
        say(_LEFT.get(invocation.command, "interrupted"))
        return INTERRUPTED
    if isinstance(error, SystemExit):
        say(_LEFT.get(invocation.command, "interrupted").replace("interrupted", "terminated"))
        return TERMINATED
    if isinstance(error, OSError) and error.filename is not None:
        _tell(f"{error.filename}: {error.strerror}", "check the path, who may read and write there, and the room left")
        return USAGE
    return _internal(error, invocation.arguments)


def _tell(message: str, advice: str) -> None:
    say(f"error: {message}" if len(message) <= _LONGEST else f"error: {message[:_LONGEST]}…")
    if advice:
        say(f"hint: {advice}")


def hint(error: errors.LorasizeError, invocation: Invocation) -> str:
    """The option or command that helps; empty when there is none to name."""
    model = f" {shlex.quote(invocation.model)}" if invocation.model else ""
    corpus = " ".join(map(shlex.quote, invocation.corpus)) or "CORPUS"
    if "package xllamacpp" in str(error):
        return "install it where lorasize is installed, or name the Python that has it with --engine-python"
    if "vLLM cannot be imported" in str(error):
        return "--engine-python names the Python that has it; `make engines` in lorasize's sources makes one"
    if "pip install" in str(error):
        return "install it where lorasize is installed, then run the same command again"
    if invocation.command == "show":
        return "name a calibration, a plan, a report or an adapter folder"
    if isinstance(error, errors.CalibrationError):
        return _calibration_hint(error, invocation, f"run `lorasize calibrate{model}`")
    if isinstance(error, errors.StalePlanError):
        return f"run `lorasize plan {corpus}`"
    if isinstance(error, errors.FitError):
        return f"run `lorasize calibrate{model} --preset thorough` without --time-limit"
    if isinstance(error, errors.InfeasibleCorpusError):
        return f"correct the corpus at these lines, then run `lorasize plan {corpus}`"
    if isinstance(error, errors.TrainingDivergedError):
        return f"run `lorasize plan {corpus} --dtype float32`, then `lorasize apply`"
    if isinstance(error, errors.CorpusError):
        return _corpus_hint(error, invocation)
    if isinstance(error, errors.ModelError):
        return _engine_hint(error, invocation) if _of_engine(error, invocation) else _model_hint(invocation.command)
    if invocation.command in ("apply", "check"):
        return "run `lorasize plan CORPUS` to make a plan"
    return "--compare takes a plan that `lorasize plan` wrote" if invocation.has("--compare") else ""


def _calibration_hint(error: errors.CalibrationError, invocation: Invocation, calibrate: str) -> str:
    if invocation.command == "calibrate":
        return "--executor and --workers say where probes run, --out where they are written"
    if invocation.command == "demo":
        return "--out chooses another folder"
    if invocation.command != "plan":
        return f"{calibrate}, then `lorasize plan`"
    if "bound on drift" in str(error):
        return "--max-drift off plans without a bound; `lorasize calibrate --add-to FILE` adds probes under one"
    modules = ", or other modules with --target-modules" if invocation.has("--target-modules") else ""
    return f"{calibrate}, or name another file with --calibration{modules}"


def _corpus_hint(error: errors.CorpusError, invocation: Invocation) -> str:
    command = invocation.command
    if command == "apply" and error.file and error.file not in invocation.corpus:
        return "--retain names the text that must not suffer: another or a longer one"
    if command == "plan" and error.file and error.line is None and not os.path.lexists(error.file):
        return "name a file that is there: text, Markdown, JSON, JSONL, CSV, TSV or Parquet"
    if command == "plan" and "neither used nor named" in str(error):
        return "--prompt-template and --field name columns; --columns warn goes on all the same"
    if command == "plan" and "as it stands" in str(error):
        return "--format json, jsonl, csv or tsv reads records, --format text takes it as it stands"
    if command == "plan" and "extractable" in str(error):
        return "--secrets warn goes on all the same, --secrets off does not look"
    return {
        "calibrate": "--corpus names the text to probe on: another or a longer one, or none",
        "apply": "run it in the folder in which the plan was made, or run `lorasize plan` again",
        "verify": "name the corpus files after the adapter, or none",
        "check": "correct the corpus, then run `lorasize plan`",
        "demo": "--out chooses another folder",
    }.get(command, "--format, --field and --prompt-template of `lorasize plan` say how a corpus is read")


def _of_engine(error: errors.ModelError, invocation: Invocation) -> bool:
    """Whether it is about the engine that was asked to decode."""
    if invocation.has("--prove-with"):
        return any(word in str(error) for word in ("llama.cpp", "vLLM", "GGUF", ".gguf"))
    return invocation.has("--engine") or invocation.has("--prove")


def _engine_hint(error: errors.ModelError, invocation: Invocation) -> str:
    if "HTTP 401" in str(error) or "HTTP 403" in str(error):
        return "LORASIZE_ENGINE_TOKEN or OPENAI_API_KEY in the environment holds the token"
    named = ", --served-model what a server calls the adapter" if invocation.has("--engine") else ""
    return (
        f"--engine-model names the base as it is served (for llama.cpp a GGUF file){named}; --engine-timeout gives it "
        "more time"
    )


def _model_hint(command: str) -> str:
    return {
        "calibrate": "--model, --revision, --device and --dtype choose the model and where it runs",
        "plan": "--model, --revision, --device and --dtype choose the model and where it runs",
        "base": "--model and --revision choose the model",
        "export": "--out chooses another place; --model names the base model, --engine-model its GGUF file",
        "apply": "--out chooses another folder, --device another device; --model says where the plan's model is now",
        "verify": "--model names the base model, --device and --attn others; `lorasize apply` makes the folder again",
        "demo": "--device chooses another device, --out another folder",
    }.get(command, "")


def _usage(error: click.ClickException, invocation: Invocation) -> int:
    context = error.ctx if isinstance(error, click.UsageError) else None
    command = context.command_path if context is not None else f"lorasize {invocation.command}".rstrip()
    _tell(error.format_message(), f"{_set_by(error)}`{command} --help` shows every option")
    return USAGE


def _set_by(error: click.ClickException) -> str:
    """Where a bad value comes from, if not from the command line."""
    if not isinstance(error, click.BadParameter) or error.ctx is None or error.param is None:
        return ""
    name = error.param.name or ""
    source = error.ctx.get_parameter_source(name)
    if source is click.core.ParameterSource.ENVIRONMENT:
        return f"the value is that of {variable(error.ctx, name)}; "
    place = setter(read_places(Path()), name) if source is click.core.ParameterSource.DEFAULT_MAP else ""
    return f"the value is set in {place}; " if place else ""


def _internal(error: BaseException, arguments: Sequence[str]) -> int:
    path = _write_traceback(error, arguments)
    where = f"; the traceback is in {path}" if path else ""
    _tell(f"internal: {type(error).__name__}: {error}"[:500] + where, "please report it with the traceback")
    if path is None:
        traceback.print_exception(error)
    return INTERNAL


def _write_traceback(error: BaseException, arguments: Sequence[str]) -> Path | None:
    versions = f"lorasize {__version__}, Python {platform.python_version()}, {sys.platform}"
    text = f"{versions}\narguments: {list(arguments)}\n\n" + "".join(traceback.format_exception(error))
    name = f"traceback-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    for folder in (Path(".lorasize"), Path(tempfile.gettempdir())):
        try:
            folder.mkdir(exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8", errors="backslashreplace")
        except OSError:
            continue
        return folder / name
    return None
