"""The journal keeps every finished observation, so that an interrupted calibration goes on where it stopped."""

from __future__ import annotations

import json
import os
from pathlib import Path

from pydantic import ValidationError

from lorasize.artifacts.files import read_bytes, write_whole
from lorasize.errors import CalibrationError
from lorasize.records import Observation, ProbeSpec


class Journal:
    """Finished observations of one calibration, one JSON line each, on disk before the next probe starts."""

    def __init__(self, path: Path, key: dict[str, str]) -> None:
        """Open or begin; a journal kept for another model, device, dtype or recipe is begun again."""
        self._path = path
        self._key = json.dumps(key, sort_keys=True)
        self._done: dict[str, Observation] = {}
        lines = self._lines()
        for line in lines[1:] if lines and lines[0] == self._key.encode() else []:
            try:
                self._keep(Observation.model_validate_json(line))
            except ValidationError:
                continue  # a line cut short by a kill: that probe runs again
        self._begin()

    def _lines(self) -> list[bytes]:
        """What is on disk; as bytes, since only the line that holds a damaged one is lost."""
        if not self._path.exists():
            return []
        try:
            return read_bytes(self._path).splitlines()
        except ValueError as error:
            raise CalibrationError(f"{self._path}: {error}; move it away") from None
        except OSError as error:
            raise CalibrationError(f"{self._path}: cannot be read ({error.strerror})") from error

    def _begin(self) -> None:
        """Write what was read back to disk, without lines that a kill cut short."""
        lines = [self._key, *(o.model_dump_json() for o in self._done.values())]
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_whole("".join(line + "\n" for line in lines).encode(), self._path)
        except OSError as error:
            raise CalibrationError(f"{self._path}: cannot be written ({error.strerror})") from error

    def _keep(self, observation: Observation) -> None:
        self._done[observation.probe.model_dump_json()] = observation

    def get(self, spec: ProbeSpec) -> Observation | None:
        """The observation of a probe that was finished before."""
        return self._done.get(spec.model_dump_json())

    def add(self, observation: Observation) -> None:
        """Keep an observation."""
        self._keep(observation)
        try:
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(observation.model_dump_json() + "\n")
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise CalibrationError(f"{self._path}: cannot be written ({error.strerror})") from error

    def remove(self) -> None:
        """Delete the journal: its observations are in the calibration now."""
        self._path.unlink(missing_ok=True)
