"""atheris on the reader artifact: see `target`."""

from target import fuzz

if __name__ == "__main__":
    fuzz("artifact")
