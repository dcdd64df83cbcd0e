"""The training loop: until every target token passes, or the budget ends."""

from lorasize.training.batches import Batch, base_losses, make_batches, sequence_length
from lorasize.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from lorasize.training.loop import Evaluation, Trainer, TrainingOptions
from lorasize.training.retain import neutral_text, windows
from lorasize.training.stall import PATIENCE, Stall

__all__ = [
    "PATIENCE",
    "Batch",
    "Checkpoint",
    "Evaluation",
    "Stall",
    "Trainer",
    "TrainingOptions",
    "base_losses",
    "make_batches",
    "neutral_text",
    "read_checkpoint",
    "sequence_length",
    "windows",
    "write_checkpoint",
]
