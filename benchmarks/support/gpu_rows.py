"""What the parts of gpu.py measure: rows, written to a file one by one so that a time-out loses none. No script."""

from __future__ import annotations

import json
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class OutOfTimeError(Exception):
    """A part has used up its seconds."""


@dataclass
class Rows:
    """All rows so far.

    Attributes:
        path: The JSON file.
        about: Card, versions, command and date, which stand beside all figures.
        rows: One for each figure: part, what, value, unit, and what was wanted of it where something was.
    """

    path: Path
    about: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)
    part: str = ""
    started: float = field(default_factory=time.perf_counter)

    def add(self, what: str, value: Any, unit: str = "", *, wanted: str = "", good: bool | None = None) -> None:
        """One figure; `good` says whether it is as wanted."""
        at = round(time.perf_counter() - self.started, 1)
        row = {"part": self.part, "what": what, "value": value, "unit": unit, "wanted": wanted, "good": good, "at": at}
        self.rows.append({key: value for key, value in row.items() if value not in ("", None)})
        print(f"[{at:6.1f}] {line_of(self.rows[-1])}", flush=True)
        self.path.write_text(json.dumps({"about": self.about, "rows": self.rows}, indent=1) + "\n", encoding="utf-8")

    @contextmanager
    def within(self, name: str, seconds: float) -> Iterator[None]:
        """A part with a time limit: what it has measured by then stays, and the next part goes on."""

        def stop(*_: Any) -> None:
            raise OutOfTimeError(f"{name} had {seconds:.0f} s")

        self.part, before = name, signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.add("broke off", f"{type(error).__name__}: {error}"[:300], good=False)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def attempt(self, what: str, work: Callable[[], Any]) -> Any:
        """Do work of which a failure is one row, and the next goes on. Running out of time is not such a failure."""
        try:
            return work()
        except OutOfTimeError:
            raise
        except Exception as error:
            traceback.print_exc()
            self.add(what, f"{type(error).__name__}: {error}"[:300], good=False)
            return None


def line_of(row: dict[str, Any]) -> str:
    """A row as a line."""
    value = row["value"]
    shown = f"{value:.4g}" if isinstance(value, float) else str(value)
    good = {True: "  ok", False: "  NOT"}.get(row.get("good"), "")
    wanted = f"  ({row['wanted']})" if row.get("wanted") else ""
    return f"{row['part']:8} {row['what']:66} {shown:>12} {row.get('unit', '')}{wanted}{good}"


def table(rows: list[dict[str, Any]]) -> str:
    """All rows, one a line."""
    return "\n".join(map(line_of, rows))
