"""atheris on the reader corpus-text: see `target`."""

from target import fuzz

if __name__ == "__main__":
    fuzz("corpus-text")
