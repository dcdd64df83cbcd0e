"""The fresh process that decodes: started here, and run here (`python -m lorasize.recall.process`)."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

from lorasize.errors import LorasizeError, ModelError
from lorasize.records import Decoded, DecodeJob


@dataclass(frozen=True)
class _Fresh:
    """A process that was just started, and where it complains."""

    process: subprocess.Popen[str]
    complaints: IO[str]

    @classmethod
    def start(cls) -> _Fresh:
        # -P: no module from the folder one happens to be in.
        command = [sys.executable, "-P", "-m", "lorasize.recall.process"]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
        complaints = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": complaints, "text": True}
        return cls(subprocess.Popen(command, env=environment, **pipes), complaints)

    def close(self) -> None:
        """End it. Without a job it has nothing to lose."""
        if self.process.stdin is not None and not self.process.stdin.closed:
            self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self.process.wait()
        self.complaints.close()


_standing_by: list[_Fresh] = []  # started before there was a job for them


@contextmanager
def standing_by(*, wanted: bool) -> Iterator[None]:
    """Let a fresh process import what it needs beside the work inside the block, if `wanted`; the next job is its own.

    It shares no more with this process than one that is started later: it waits for its job at a pipe.
    """
    early = [_Fresh.start()] if wanted else []
    _standing_by.extend(early)
    try:
        yield
    finally:
        for one in early:
            if one in _standing_by:
                _standing_by.remove(one)
                one.close()


def decode_afresh(job: DecodeJob) -> Iterator[Decoded]:
    """One `Decoded` a passage, from a Python process that has done nothing before.

    Raises:
        ModelError: it failed.
    """
    fresh = _standing_by.pop() if _standing_by else _Fresh.start()
    process = fresh.process
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it died at its start: the message below says of what
            process.stdin.write(job.model_dump_json())
            process.stdin.close()
        for line in process.stdout:
            yield Decoded.model_validate_json(line)
        if process.wait():
            fresh.complaints.seek(0)
            last = (fresh.complaints.read().strip().splitlines() or ["no message"])[-1]
            raise ModelError(f"decoding in a fresh process failed: {last}")
    finally:
        fresh.close()


def main() -> None:
    """The fresh process: a DecodeJob on standard input, one Decoded a line on standard output."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # some libraries of quantised weights print when they are imported
    from lorasize.recall.decoding import decode

    job = DecodeJob.model_validate_json(sys.stdin.read())
    try:
        for decoded in decode(job):
            answers.write(decoded.model_dump_json() + "\n")
            answers.flush()
    except LorasizeError as error:
        sys.exit(" ".join(str(error).split()))


if __name__ == "__main__":
    main()
