"""atheris on the reader config-own: see `target`."""

from target import fuzz

if __name__ == "__main__":
    fuzz("config-own")
