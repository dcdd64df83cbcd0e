"""atheris on the reader plan: see `target`."""

from target import fuzz

if __name__ == "__main__":
    fuzz("plan")
