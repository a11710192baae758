"""`python -m serving`: as `latentry serve`."""

import sys

from latentry.cli import main

sys.exit(main(["serve", *sys.argv[1:]]))
