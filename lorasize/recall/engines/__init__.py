"""Engines that people serve with, decoding in place of transformers: llama.cpp here, or a server that is already up.

Each takes the prompts as the ids in `passages.jsonl` and gives what it decoded; `recall.verdict` compares, by the same
rule for all. No engine is a dependency: llama.cpp runs in a process of its own, in whichever Python has it.
"""
