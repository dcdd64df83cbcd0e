"""What the stand-ins for engines are told by the file that `FAKE_ENGINE` names: what to answer, and what goes wrong.

`answers`, by the prompt's ids; `fault`, what goes wrong, at the prompt numbered `at`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

with open(os.environ["FAKE_ENGINE"], encoding="utf-8") as stream:
    TOLD: dict[str, Any] = json.load(stream)


def answer(prompt: list[int]) -> Any:
    """The answer to a prompt."""
    return TOLD["answers"][json.dumps(prompt)]


def fail(n: int, said: str) -> None:
    """Die, last words said, or hang with a child, if it is the turn of the prompt numbered n."""
    if n != TOLD.get("at"):
        return
    if TOLD["fault"] == "dies":
        print(said, file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if TOLD["fault"] == "hangs":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
        Path(os.environ["FAKE_ENGINE"]).with_name("pids").write_text(f"{os.getpid()} {child.pid}", "utf-8")
        time.sleep(3600)
