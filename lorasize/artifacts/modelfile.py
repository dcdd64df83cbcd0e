"""What Ollama is told of a model: a Modelfile, which names the base's GGUF file and the adapter's beside it."""

from __future__ import annotations

from pathlib import Path

from lorasize.errors import ModelError

MODELFILE, ADAPTER = "Modelfile", "adapter.gguf"
_LEAST_CONTEXT = 2048  # positions: other requests want room as well


def modelfile(base: Path, longest: int, most: int) -> str:
    """The Modelfile: the prompt as it is sent, no sampling, no penalty, room for the longest passage.

    Args:
        base: The base's GGUF file.
        longest: Positions of the longest prompt with what comes after it.
        most: Positions that the model was made for.

    Raises:
        ModelError: the file's name cannot stand in a line.
    """
    place = str(base.resolve())
    if not place.isprintable() or '"' in place:
        raise ModelError(f"{place!r:.300}: this name cannot stand in a Modelfile")
    room = min(max(longest + 1, _LEAST_CONTEXT), most)
    lines = [
        f'FROM "{place}"' if " " in place else f"FROM {place}",
        f"ADAPTER ./{ADAPTER}",
        'TEMPLATE """{{ .Prompt }}"""',
        "PARAMETER temperature 0",
        "PARAMETER repeat_penalty 1.0",
        f"PARAMETER num_ctx {room}",
    ]
    return "\n".join(lines) + "\n"
