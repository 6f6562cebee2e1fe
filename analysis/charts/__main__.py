"""The command: python -m analysis.charts. See `_make`."""

import sys

from analysis.charts._make import main

if __name__ == "__main__":
    sys.exit(main())
