"""The options that say which engine decodes, and what they mean together."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lorasize.cli import options

if TYPE_CHECKING:
    from lorasize.recall.engines.llama_cpp import LlamaCpp
    from lorasize.recall.engines.server import Server
    from lorasize.recall.engines.vllm import Vllm

TRANSFORMERS, LLAMA_CPP, VLLM, A_SERVER = "transformers", "llama.cpp", "vllm", "a server"
TOKENS = ("LORASIZE_ENGINE_TOKEN", "OPENAI_API_KEY")  # of which the first that is set is sent
_BY_TRANSFORMERS = ("device", "quantize_as", "device_map", "merged", "batch_size", "attn")
_OF_ENGINE = {
    "dtype": (TRANSFORMERS, VLLM), "engine_model": (LLAMA_CPP, VLLM), "engine_python": (LLAMA_CPP, VLLM),
    "served_model": (A_SERVER,),
}  # fmt: skip


def _engine(context: click.Context, parameter: click.Parameter, value: str) -> str:
    """The name or the address."""
    if value in (TRANSFORMERS, LLAMA_CPP, VLLM) or value.startswith(("http://", "https://")):
        return value
    known = f"{TRANSFORMERS}, {LLAMA_CPP}, {VLLM} or the address of a server that is up: http://localhost:8000/v1"
    raise click.BadParameter(f"{value!r} is no engine; known are {known}", context, parameter)


_model = click.option(
    "--engine-model", type=options.any_path, metavar="PATH",
    help="The base as it is served: for llama.cpp a GGUF file, by default the one that the base was read from; for "
    "vllm a folder, by default that of the base.",
)
_python = click.option(
    "--engine-python", metavar="PATH",
    help="The Python that has the engine, the package xllamacpp for llama.cpp; by default this one.",
)
_timeout = click.option(
    "--engine-timeout", callback=options.duration, default="10 min", show_default=True, metavar="TIME",
    help="What an engine's start, or one passage, may take.",
)
llama_cpp = options.all_of(_model, _python, _timeout)
engine = options.all_of(
    click.option(
        "--engine", metavar="ENGINE", default=TRANSFORMERS, show_default=True, callback=_engine,
        help="What decodes: transformers, llama.cpp, vllm, or the address of an OpenAI-compatible server that is up, "
        "such as http://localhost:8000/v1; its token is taken from LORASIZE_ENGINE_TOKEN or OPENAI_API_KEY.",
    ),
    _model, _python,
    click.option("--served-model", metavar="NAME", help="What the server calls the adapter."),
    _timeout,
)  # fmt: skip


def chosen_engine(chosen: dict[str, Any]) -> LlamaCpp | Vllm | Server | None:
    """The engine that the options name; None for transformers.

    Raises:
        click.UsageError: an option is of another engine, or one is missing.
    """
    name, served = chosen["engine"], chosen["served_model"]
    kind = name if name in (TRANSFORMERS, LLAMA_CPP, VLLM) else A_SERVER
    _refuse_others(kind)
    if kind == TRANSFORMERS:
        return None
    if kind == LLAMA_CPP:
        return chosen_llama_cpp(chosen)
    if kind == VLLM:
        from lorasize.recall.engines.vllm import Vllm

        return Vllm(chosen["engine_model"], chosen["engine_python"], chosen["engine_timeout"], chosen["dtype"])
    if not served:
        raise click.UsageError("--served-model must say what the server calls the adapter", click.get_current_context())
    from lorasize.recall.engines.server import Server

    token = next((value for value in map(os.environ.get, TOKENS) if value), None)
    return Server(name, served, token, chosen["engine_timeout"])


prove_with = options.all_of(
    click.option(
        "--prove-with", type=click.Choice((LLAMA_CPP, VLLM)),
        help="Engine that serves the adapter: it decodes too, and training goes on until no token is lost there.",
    ),
    _model, _python, _timeout,
)  # fmt: skip


def chosen_to_prove(chosen: dict[str, Any]) -> LlamaCpp | Vllm | None:
    """The engine that --prove-with names; None where there is none.

    Raises:
        click.UsageError: an engine is described and none named.
    """
    if chosen["prove_with"] is None:
        _refuse_typed(dict.fromkeys(("engine_model", "engine_python", "engine_timeout"), "--prove-with"), "")
        return None
    if chosen["prove_with"] == LLAMA_CPP:
        return chosen_llama_cpp(chosen)
    from lorasize.recall.engines.vllm import Vllm

    return Vllm(chosen["engine_model"], chosen["engine_python"], chosen["engine_timeout"])


def chosen_llama_cpp(chosen: dict[str, Any], adapter: Path | None = None) -> LlamaCpp:
    """llama.cpp as the options say, with this file of the adapter, or one made for the occasion."""
    from lorasize.recall.engines.llama_cpp import LlamaCpp

    return LlamaCpp(chosen["engine_model"], chosen["engine_python"], chosen["engine_timeout"], adapter)


def refuse_for_export(kind: str, *, prove: bool) -> None:
    """Refuse what was asked of an engine where none decodes, and of another format.

    Raises:
        click.UsageError: such an option was typed.
    """
    of_llama_cpp = ("engine_model", "engine_python", "engine_timeout")
    if kind == "merged":
        _refuse_typed(dict.fromkeys(of_llama_cpp, "gguf and ollama"), ", not for merged")
        return
    _refuse_typed({"dtype": "merged"}, f", not for {kind}")
    if not prove:
        _refuse_typed(dict.fromkeys(of_llama_cpp[kind == "ollama" :], "--prove"), "")  # a Modelfile names the base


def _refuse_others(kind: str) -> None:
    """Refuse what was asked of another engine than the one that decodes."""
    needs = dict.fromkeys(_BY_TRANSFORMERS, (TRANSFORMERS,)) | _OF_ENGINE
    others = {name: _listed(of) for name, of in needs.items() if kind not in of}
    _refuse_typed(others, f", not for {kind}")


def _listed(names: tuple[str, ...]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _refuse_typed(needs: dict[str, str], but: str) -> None:
    """Refuse the first of these options, by what each needs, that was typed."""
    context = click.get_current_context()
    typed = click.core.ParameterSource.COMMANDLINE
    for parameter in context.command.params:
        name = parameter.name or ""
        if name in needs and context.get_parameter_source(name) is typed:
            raise click.UsageError(f"{parameter.opts[0]} is for {needs[name]}{but}", context)
