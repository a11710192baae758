"""How a subcommand ends: expected failures, Ctrl-C and SIGTERM become one line on stderr and an exit status."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from latentry.manifest import ManifestError
from training.errors import TrainingError

EXIT_FAILED = 2
EXIT_INTERRUPTED = 130


def outcome(command: Callable[[], int | None], interrupted: Callable[[], str]) -> int:
    """Run `command`; expected failures, Ctrl-C and SIGTERM become one line on stderr and an exit status."""
    try:
        with _stoppable():
            return command() or 0
    except (TrainingError, ManifestError) as error:
        print(f"latentry: error: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print(f"\n{interrupted()}", file=sys.stderr)
        return EXIT_INTERRUPTED


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM, as `docker stop` and batch systems send it, stops the block as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():  # which alone may say what a signal does
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
