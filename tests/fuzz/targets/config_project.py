"""atheris on the reader config-project: see `target`."""

from target import fuzz

if __name__ == "__main__":
    fuzz("config-project")
