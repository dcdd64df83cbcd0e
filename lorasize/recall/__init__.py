"""Recall: greedy decoding from the saved adapter, in a fresh process, against the target."""
