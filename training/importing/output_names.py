"""What the names of an encoder's outputs say: which is the mean, which a spread, and of what kind."""

from __future__ import annotations

import re
from collections.abc import Iterable

from training.importing.options import LOGSTD, LOGVAR, STD, VARIANCE

_SPREADS = (
    (LOGVAR, ("logvar", "logcov", "lnvar", "logsigma2", "logsigmasq")),
    (LOGSTD, ("logstd", "logsigma", "logscale", "lnstd", "lnsigma")),
    (VARIANCE, ("var", "cov", "sigma2", "sigmasq")),
    (STD, ("std", "stddev", "sigma", "scale", "deviation")),
)
_MEANS = {"mean", "mu", "loc", "embedding"}


def mean(outputs: Iterable[str]) -> str | None:
    """The only one whose name says a mean."""
    found = [name for name in outputs if not kind_of(name) and _words(name) & _MEANS and "prior" not in _words(name)]
    return found[0] if len(found) == 1 else None


def spread(outputs: Iterable[str], kind: str | None) -> str | None:
    """The only one whose name says a spread, of that kind if one is given."""
    found = [name for name in outputs if kind_of(name) and kind in (None, kind_of(name))]
    return found[0] if len(found) == 1 else None


def kind_of(name: str) -> str | None:
    """The kind of spread that an output's name says, if any."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    if "prior" in plain:
        return None
    kind = next((kind for kind, parts in _SPREADS if any(part in plain for part in parts)), None)
    return None if kind in (STD, VARIANCE) and "log" in plain else kind  # log_z_var is the logarithm of something


def _words(name: str) -> set[str]:
    return set(re.findall("[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower()))
