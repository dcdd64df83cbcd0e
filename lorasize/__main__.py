"""`python -m lorasize`: the same as the `lorasize` command."""

import sys

from lorasize.cli import main

if __name__ == "__main__":
    sys.exit(main())
