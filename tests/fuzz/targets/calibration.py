"""atheris on the reader calibration: see `target`."""

from target import fuzz

if __name__ == "__main__":
    fuzz("calibration")
