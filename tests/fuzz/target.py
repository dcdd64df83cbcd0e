"""atheris on one reader: `python tests/fuzz/target.py corpus-jsonl -max_total_time=60`.

Gives atheris' bytes to the reader of that name, from the good files and the regressions on, and fails on anything but a
success or one line. Without a name it lists them. atheris is not a dependency of lorasize or of its tests:
`pip install atheris`.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
with atheris.instrument_imports(include=["lorasize"]):
    from fuzz.readers import CHARACTERS, REGRESSIONS, light, of_message, refusal

    from lorasize.artifacts import adapter_folder

IN_A_FOLDER: dict[str, tuple[str, Callable[[Path], object]]] = {
    "adapter-passages.jsonl": ("passages.jsonl", adapter_folder.read_addresses),
    "adapter-lorasize.json": ("lorasize.json", adapter_folder.read_record),
    "adapter-SHA256SUMS": ("SHA256SUMS", adapter_folder.changed_files),
    "adapter-adapter_model.safetensors": ("adapter_model.safetensors", adapter_folder.check_weights),
}
"""Readers of an adapter folder: the file that is fuzzed, and what is called with the folder."""


def fuzz(name: str, file: str, read: Callable[[Path], object], good: Sequence[bytes] = ()) -> None:
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

        atheris.Setup([sys.argv[0], *sys.argv[2:], str(seeds)], once)
        atheris.Fuzz()


def main() -> None:
    """Fuzz the reader named on the command line."""
    readers = {reader.name: reader for reader in light()}
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in IN_A_FOLDER:
        file, read = IN_A_FOLDER[name]
        fuzz(name, file, lambda path: read(path.parent))
    elif name in readers:
        fuzz(name, readers[name].file, readers[name].read, readers[name].good)
    else:
        sys.exit(f"name one of {', '.join(sorted({*readers, *IN_A_FOLDER}))}")


if __name__ == "__main__":
    main()
