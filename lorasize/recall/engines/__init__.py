"""Engines that people serve with, decoding in place of transformers: llama.cpp, vLLM, or a server that is already up.

Each takes the prompts as the ids in `passages.jsonl` and gives what it decoded; `recall.verdict` compares, by the same
rule for all. No engine is a dependency: they run in a process of their own, in whichever Python has them.
"""
