"""Probes: one small training run gives one observation. What runs, what is kept, and where it runs.

A probe is a pure function of its spec and the base model, so it may run in this process, in another, or on a cluster.
"""

from lorasize.probing.executors import Execute, executor
from lorasize.probing.journal import Journal
from lorasize.probing.probes import invented_sentences, probe_passage, run_probe

__all__ = ["Execute", "Journal", "executor", "invented_sentences", "probe_passage", "run_probe"]
