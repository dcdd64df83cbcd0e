"""atheris on the reader corpus-jsonl: see `target`."""

from target import fuzz

if __name__ == "__main__":
    fuzz("corpus-jsonl")
