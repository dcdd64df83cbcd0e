"""What every fuzz target here does: give atheris' bytes to one reader, and fail on anything but a success or one line.

atheris is not a dependency of lorasize or of its tests: `pip install atheris`, then for instance
`python tests/fuzz/targets/corpus_jsonl.py -max_total_time=60`. It starts from the good files and the regressions.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
with atheris.instrument_imports(include=["lorasize"]):
    from readers import CHARACTERS, REGRESSIONS, light, of_message, refusal


def fuzz(name: str) -> None:
    """Fuzz the reader of this name."""
    reader = next(reader for reader in light() if reader.name == name)
    fuzz_call(name, reader.file, reader.read, reader.good)


def fuzz_call(name: str, file: str, read: Callable[[Path], object], good: Sequence[bytes] = ()) -> None:
    """Fuzz a call that is given the path of a file of this name."""
    with tempfile.TemporaryDirectory() as folder:
        path, seeds = Path(folder) / file, Path(folder) / "seeds"
        seeds.mkdir()
        kept = [one.read_bytes() for one in (REGRESSIONS / name).glob("*")]
        for k, data in enumerate((*good, *kept)):
            (seeds / str(k)).write_bytes(data)

        def once(data: bytes) -> None:
            path.write_bytes(data)
            message = refusal(lambda: read(path))
            wrong = None if message is None else of_message(message, CHARACTERS)
            if wrong is not None:
                raise AssertionError(wrong)

        atheris.Setup([*sys.argv, str(seeds)], once)
        atheris.Fuzz()
