"""What a running service takes over from settings that were read anew."""

from __future__ import annotations

import logging

from serving import logs
from serving.settings import Settings

log = logging.getLogger(__name__)

_RELOADABLE = {"log_level", "labels"}


def take_over(before: Settings, settings: Settings) -> bool:
    """Whether the log level was set, because it is another; says what else is, and needs a restart."""
    changed = {key for key in type(settings).model_fields if getattr(settings, key) != getattr(before, key)}
    if "log_level" in changed:
        logs.set_level(settings.log_level)
    if changed - _RELOADABLE:
        log.warning("these settings need a restart: %s", ", ".join(sorted(changed - _RELOADABLE)))
    return "log_level" in changed
