"""Corpus files → passages. Knows formats, bytes and lines; nothing of tokens or models."""

from lorasize.corpus.files import read_text
from lorasize.corpus.reading import Corpus, corpus_sha256, read, read_corpus, unique_ids

__all__ = ["Corpus", "corpus_sha256", "read", "read_corpus", "read_text", "unique_ids"]
