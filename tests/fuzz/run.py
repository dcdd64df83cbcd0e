"""Feeds bad inputs to every reader and to the commands: `python tests/fuzz/run.py --n 20000 --seed 0`.

Prints how many each reader was given. Exits with 1 when one led to anything but a success or one short line, and keeps
that input in `regressions/<reader>/`.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

if __name__ == "__main__":
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fuzz import commands, good, mutate
from fuzz.readers import PLACES, Reader, clear, heavy, judged, keep, kept, light, prepared

LARGE = ("gguf", "llama-model.safetensors", "plan model.safetensors", "adapter_config.json")  # a digest takes its time
OWN = ("checkpoint",)  # lies in a folder that lorasize itself makes: damaged perhaps, but a file
KEPT = 5  # inputs of one reader in one run: one defect shows in many


@dataclass
class Tally:
    """How many inputs each reader was given, and what went wrong."""

    given: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def note(self, reader: Reader, what: str, found: str | None, data: bytes | None = None) -> None:
        """Count one input; keep it if something was wrong."""
        self.given[reader.name] += 1
        if found is not None:
            few = sum(line.startswith(f"{reader.name}: input") for line in self.wrong) < KEPT
            where = f" ({keep(reader, data)})" if few and data is not None else ""
            self.wrong.append(f"{reader.name}: {what}: {found:.300}{where}")

    def hangs(self) -> int:
        return sum(": hangs: " in line for line in self.wrong)


def share(readers: Sequence[Reader], n: int) -> dict[str, int]:
    """Inputs for each reader, by weight, n in all or a few more."""
    total = sum(reader.weight for reader in readers)
    return {reader.name: -(-n * reader.weight // total) for reader in readers}


def feed(reader: Reader, n: int, seed: int, work: Path, tally: Tally) -> None:
    """What was kept, every good file, every place that is no file, and n mutated inputs."""
    random = Random(f"{seed} {reader.name}")
    path = prepared(reader, work)
    inputs = [(f"kept {file.name}", file.read_bytes()) for file in kept(reader)]
    inputs += [("good", data) for data in reader.good]
    for what, data in inputs:
        give(reader, path, what, data, tally)
    for what, make in PLACES.items():
        if (reader.name.endswith(LARGE) and what.startswith("a terabyte")) or reader.name in OWN:
            continue
        clear(path)
        make(path)
        tally.note(reader, what, judged(reader, path))
    for k in range(n):
        data = mutate.mutated(random, random.choice(reader.good), reader.kind)
        while len(data) > reader.longest:
            data = mutate.mutated(random, random.choice(reader.good), reader.kind)
        give(reader, path, f"input {k}", data, tally)
    clear(path)


def give(reader: Reader, path: Path, what: str, data: bytes, tally: Tally) -> None:
    """One input."""
    clear(path)
    path.write_bytes(data)
    tally.note(reader, what, judged(reader, path, good=what == "good"), data)


def main() -> int:
    """The whole run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=20_000, help="inputs in all, at least")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="readers whose names begin so")
    chosen = parser.parse_args()
    began, tally = time.monotonic(), Tally()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as made, contextlib.ExitStack() as stack:
        work = Path(made)
        os.environ["LORASIZE_CACHE"] = str(work / "cache")
        models = good.models(work)
        (work / "made").mkdir()
        readers = [*light(), *heavy(models["tiny_llama"], models["tiny_gpt2"], work / "made")]
        readers += commands.readers(models["tiny_llama"], work / "made", stack)
        readers = [reader for reader in readers if reader.name.startswith(chosen.only)]
        for reader, n in zip(readers, share(readers, chosen.n).values(), strict=True):
            faulthandler.dump_traceback_later(600 + n)  # something that no alarm ends
            start = time.monotonic()
            feed(reader, n, chosen.seed, work / "inputs", tally)
            print(f"{reader.name:40} {tally.given[reader.name]:7,}   {time.monotonic() - start:6.1f} s", flush=True)
        faulthandler.cancel_dump_traceback_later()
    print(*tally.wrong, sep="\n", end="\n" if tally.wrong else "")
    total, hangs, seconds = sum(tally.given.values()), tally.hangs(), time.monotonic() - began
    bad = len(tally.wrong) - hangs
    print(f"total {total:,} bad inputs, {bad} tracebacks or bad messages, {hangs} hangs, {seconds:.0f} s")
    return 1 if tally.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
