"""How a subcommand ends: expected failures and Ctrl-C become one line on stderr and an exit status."""

from __future__ import annotations

import sys
from collections.abc import Callable

from latentry.manifest import ManifestError
from training.errors import TrainingError

EXIT_FAILED = 2
EXIT_INTERRUPTED = 130


def outcome(command: Callable[[], int | None], interrupted: Callable[[], str]) -> int:
    """Run `command`; expected failures and Ctrl-C become one line on stderr and an exit status."""
    try:
        return command() or 0
    except (TrainingError, ManifestError) as error:
        print(f"latentry: error: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print(f"\n{interrupted()}", file=sys.stderr)
        return EXIT_INTERRUPTED
