"""atheris on the reader events: see `target`."""

from target import fuzz

if __name__ == "__main__":
    fuzz("events")
