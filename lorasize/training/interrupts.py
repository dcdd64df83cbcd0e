"""The first Ctrl-C waits until it loses no work; a second one acts at once. The same holds for SIGTERM."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Deferred:
    """Inside the block a signal waits for `obey`. Outside the main thread no handler can be set, so nothing waits."""

    def __init__(self) -> None:
        """Nothing waits yet."""
        self._before: dict[int, Any] = {}
        self._waiting: int | None = None

    def __enter__(self) -> Deferred:
        """Begin to listen."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put the handlers back. A signal that still waits acts now, unless an error already ends the block."""
        self._restore()
        if error is None:
            self.obey()

    @property
    def waiting(self) -> bool:
        """Whether a signal waits."""
        return self._waiting is not None

    def obey(self) -> None:
        """Let the handler from before act on the signal that waits, if any."""
        if self._waiting is not None:
            number, self._waiting = self._waiting, None
            self._restore()
            signal.raise_signal(number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._waiting is not None:
            self.obey()
            return
        self._waiting = number

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
