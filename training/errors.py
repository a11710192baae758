"""What can go wrong through no fault of ours. Each is printed as one line on stderr, with exit status 2.

config ──> data ──> fit ──> checkpoint ──> evaluate ──> export
ConfigError  DataError  RunError  CheckpointError        ExportError
"""

from __future__ import annotations


class TrainingError(Exception):
    """An expected failure; the message names what was found and what was wanted, or what to do."""


class ConfigError(TrainingError):
    """A config, preset or flag that does not make sense."""


class DataError(TrainingError):
    """Images that cannot be trained on."""


class RunError(TrainingError):
    """A run folder that is taken, absent or cannot be written to (a full disk)."""


class CheckpointError(TrainingError):
    """No checkpoint of the run can be read, or it belongs to another config or data set."""


class ExportError(TrainingError):
    """The exported graphs did not hold against torch, or the imported against the given ones, or the destination is
    taken; nothing was published."""
