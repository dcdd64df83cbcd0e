"""atheris on the reader corpus-parquet: see `target`."""

from target import fuzz

if __name__ == "__main__":
    fuzz("corpus-parquet")
