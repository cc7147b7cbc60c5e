"""`python -m spectrum` is the command `spectrum`."""

import sys

from spectrum.cli import main

if __name__ == "__main__":
    sys.exit(main())
