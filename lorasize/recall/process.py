"""The fresh process that decodes: started here, and run here (`python -m lorasize.recall.process`)."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from lorasize.errors import LorasizeError, ModelError
from lorasize.records import Decoded, DecodeJob


def decode_afresh(job: DecodeJob) -> Iterator[Decoded]:
    """One `Decoded` a passage, from a Python process that was just started."""
    # -P: no module from the folder one happens to be in.
    command = [sys.executable, "-P", "-m", "lorasize.recall.process"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    with tempfile.TemporaryFile("w+") as complaints:
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints, text=True, env=environment
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            with contextlib.suppress(BrokenPipeError):  # it died at its start: the message below says of what
                process.stdin.write(job.model_dump_json())
                process.stdin.close()
            for line in process.stdout:
                yield Decoded.model_validate_json(line)
        if process.returncode:
            complaints.seek(0)
            last = (complaints.read().strip().splitlines() or ["no message"])[-1]
            raise ModelError(f"decoding in a fresh process failed: {last}")


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
