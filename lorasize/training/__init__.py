"""The training loop: until every target token passes, or the budget ends."""

from lorasize.training.batches import Batch, base_losses, make_batches, sequence_length
from lorasize.training.loop import Evaluation, Trainer, TrainingOptions

__all__ = ["Batch", "Evaluation", "Trainer", "TrainingOptions", "base_losses", "make_batches", "sequence_length"]
