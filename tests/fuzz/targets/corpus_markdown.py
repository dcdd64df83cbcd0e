"""atheris on the reader corpus-markdown: see `target`."""

from target import fuzz

if __name__ == "__main__":
    fuzz("corpus-markdown")
