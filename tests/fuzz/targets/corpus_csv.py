"""atheris on the reader corpus-csv: see `target`."""

from target import fuzz

if __name__ == "__main__":
    fuzz("corpus-csv")
