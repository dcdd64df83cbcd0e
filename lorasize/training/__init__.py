"""The training loop: until every target token passes, or the budget ends."""

from lorasize.losses.base import base_losses
from lorasize.losses.batches import Batch, make_batches, sequence_length
from lorasize.losses.neutral import neutral_text, windows
from lorasize.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from lorasize.training.evaluation import Evaluation
from lorasize.training.stall import PATIENCE, Stall
from lorasize.training.trainer import Trainer, TrainingOptions

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
