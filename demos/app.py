"""The web demo as a program: `python demos/app.py [MODEL ...] [options]`, the same as `hiergen demo`."""

import sys

from hiergen.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["demo", *sys.argv[1:]]))
