"""Runs of a benchmark in fresh processes, one core to each, as many at a time as there are cores."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")


class Cores:
    """The cores of this machine, lent to one run at a time."""

    def __init__(self) -> None:
        """All are free."""
        able = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
        self._n = len(able)
        self._free: queue.Queue[int] = queue.Queue()
        for core in able:
            self._free.put(core)

    def map(self, function: Callable[[S], T], specs: Sequence[S]) -> list[T]:
        """`function` of every spec, in order; as many at a time as there are cores."""
        with ThreadPoolExecutor(self._n) as pool:
            return list(pool.map(function, specs))

    def run(self, script: str, *arguments: str) -> str:
        """The last line that `script --core N …` printed; the script calls `pin` with that number.

        Raises:
            SystemExit: the script failed; what it said is on stderr.
        """
        core = self._free.get()
        try:
            command = [sys.executable, script, "--core", str(core), *arguments]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        finally:
            self._free.put(core)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed")
        return done.stdout.splitlines()[-1]


def pin(core: int | None) -> None:
    """Keep this process on one core; before torch is loaded, which counts the cores it may use."""
    if core is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
