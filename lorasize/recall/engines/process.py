"""A process of its own that is told a job and answers line by line; it never outlives its use, nor makes one wait."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any

from lorasize.artifacts.files import reason
from lorasize.errors import ModelError
from lorasize.units import format_seconds

_COMPLAINT = re.compile(r"[\d.]+ E (?:\S+ +)?(?P<what>\S.*)")  # how llama.cpp logs an error


class EngineProcess:
    """A running engine. Made by `started`, which ends it."""

    def __init__(self, process: subprocess.Popen[str], complaints: IO[str], name: str, patience: float) -> None:
        """Keep what is needed to read from it and to say why it failed."""
        self.name = name
        self.patience = patience  # seconds that one answer may take
        self._process = process
        self._complaints = complaints
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def answer(self, what: str) -> Any:
        """The next answer.

        Args:
            what: What it is about, for messages.

        Raises:
            ModelError: none comes in time, the process ended before, or the answer is damaged.
        """
        try:
            line = self._lines.get(timeout=self.patience)
        except queue.Empty:
            waited = format_seconds(self.patience)
            raise ModelError(f"{self.name} gave no answer within {waited}, at {what}: it was ended") from None
        if line is None:
            raise ModelError(f"{self.name} ended ({self._ending()}), at {what}: {self._reason()}")
        try:
            return json.loads(line)
        except ValueError:
            raise ModelError(f"{self.name}: its answer at {what} is damaged ({line.strip()!r:.100})") from None

    def _read(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(OSError, ValueError):  # closed, or not UTF-8
            for line in self._process.stdout:
                self._lines.put(line)
        self._lines.put(None)

    def _ending(self) -> str:
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "it closed its output"
        return f"exit code {code}" if code >= 0 else f"signal {-code}"

    def _reason(self) -> str:
        """The first error that was logged, else the last line that was written."""
        self._complaints.seek(0)
        lines = [line.strip() for line in self._complaints.read().splitlines() if line.strip()]
        logged = next((found["what"] for line in lines if (found := _COMPLAINT.match(line))), None)
        return f"{logged or (lines or ['no message'])[-1]:.300}"


@contextmanager
def started(
    command: Sequence[str], job: Mapping[str, Any], name: str, patience: float
) -> Iterator[EngineProcess]:
    """The process of this command, told the job; it and all that it started are gone after the block.

    Args:
        command: The program and its arguments.
        job: What it reads, as one line of JSON. The pipe stays open: its end tells the process that nobody waits.
        name: What messages call it.
        patience: Seconds that each answer may take.

    Raises:
        ModelError: it cannot be started.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "encoding": "utf-8", "start_new_session": True}
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as complaints:
        try:
            process = subprocess.Popen(list(command), env=environment, stderr=complaints, **pipes)
        except (OSError, ValueError) as error:
            raise ModelError(f"{command[0]}: cannot be started ({reason(error)})") from error
        try:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # it died at its start: its answer says of what
                process.stdin.write(json.dumps(job) + "\n")
                process.stdin.flush()
            yield EngineProcess(process, complaints, name, patience)
        finally:
            _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    """Kill the group of a process: it has nothing to lose."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # the latter, on macOS, of one that is dead
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            assert pipe is not None
            pipe.close()
