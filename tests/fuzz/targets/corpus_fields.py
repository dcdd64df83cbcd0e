"""atheris on the reader corpus-fields: see `target`."""

from target import fuzz

if __name__ == "__main__":
    fuzz("corpus-fields")
