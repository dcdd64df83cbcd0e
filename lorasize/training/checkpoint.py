"""A checkpoint in one file: safetensors, with JSON in its header for all that is no tensor. Nothing is pickled.

A kill or a power cut while it is written leaves the checkpoint before or this one, whole.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lorasize.artifacts.files import write_whole

_STATE = "lorasize"


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, and everything else as JSON values."""

    tensors: Mapping[str, Tensor]
    state: Mapping[str, Any]

    def numbered(self, name: str) -> list[Tensor]:
        """The tensors `name.0`, `name.1` and so on."""
        found = [tensor for tensor in self.tensors if tensor.startswith(f"{name}.")]
        return [self.tensors[f"{name}.{k}"] for k in range(len(found))]

    def copy(self) -> Checkpoint:
        """A copy that training does not change."""
        return Checkpoint({name: tensor.clone() for name, tensor in self.tensors.items()}, copy.deepcopy(self.state))


def write_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write the checkpoint over the one before.

    Raises:
        OSError: the disk is full or the folder cannot be written; the checkpoint before is still there.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    write_whole(save(tensors, metadata={_STATE: json.dumps(checkpoint.state)}), path)


def read_checkpoint(path: Path) -> Checkpoint | None:
    """The checkpoint at this path; None where there is none, or none that can be read."""
    if not path.is_file():  # to open a pipe is to wait
        return None
    try:
        with safe_open(path, framework="pt") as stored:
            state = json.loads((stored.metadata() or {}).get(_STATE, ""))
            return Checkpoint({name: stored.get_tensor(name) for name in stored.keys()}, state)  # noqa: SIM118
    except (OSError, ValueError, RecursionError, SafetensorError):
        return None
