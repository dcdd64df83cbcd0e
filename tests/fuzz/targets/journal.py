"""atheris on the reader journal: see `target`."""

from target import fuzz

if __name__ == "__main__":
    fuzz("journal")
