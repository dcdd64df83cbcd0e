"""atheris on the reader corpus-tsv: see `target`."""

from target import fuzz

if __name__ == "__main__":
    fuzz("corpus-tsv")
