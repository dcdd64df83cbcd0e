"""Corpus files → passages. Knows formats, bytes and lines; nothing of tokens or models."""

from lorasize.corpus.files import read_text
from lorasize.corpus.reading import corpus_sha256, read_corpus, unique_ids

__all__ = ["corpus_sha256", "read_corpus", "read_text", "unique_ids"]
