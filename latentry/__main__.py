"""`python -m latentry`: as `latentry`."""

import sys

from latentry.cli import main

sys.exit(main())
