"""Where settings come from: flags over environment `LATENTRY_*` over one TOML file. Unknown keys are refused.

Knows the keys' names, not their meaning. What Kubernetes and our own tests put into the environment is passed over.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PREFIX = "LATENTRY_"
CONFIG_VARIABLE = "LATENTRY_CONFIG"
# LATENTRY_DATA: where the tests find their data sets. The others: in how many processes they run services, and how
# often they kill them.
_NOT_SETTINGS = {CONFIG_VARIABLE, "LATENTRY_DATA", "LATENTRY_TEST_FRONTENDS", "LATENTRY_KILL_ROUNDS"}
_MAX_FILE_BYTES = 1 << 20

# What Kubernetes puts into each pod for a Service called latentry, latentry-metrics, ...: these names, and *_PORT with
# a value that no port has.
_KUBERNETES_NAME = re.compile(r"\w+_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_(ADDR|PORT|PROTO))?)")
_KUBERNETES_VALUE = re.compile(r"(tcp|udp|sctp)://\S*")


@dataclass(frozen=True, slots=True)
class Sources:
    """What each source says, by key; `path` is the TOML file."""

    flags: Mapping[str, Any]
    environment: Mapping[str, str]
    file: Mapping[str, Any]
    path: Path | None

    def origin(self, key: str) -> str:
        """Where the value of `key` comes from, for people."""
        if key in self.flags:
            return f"flag {flag_of(key)}"
        if key in self.environment:
            return f"environment {variable_of(key)}"
        return f"file {self.path}" if key in self.file else "default"

    def called(self, key: str) -> str:
        """The name of `key` as whoever gave its value knows it."""
        if key in self.flags:
            return flag_of(key)
        if key in self.environment:
            return variable_of(key)
        return f"{self.path}: {key}" if key in self.file else key


def flag_of(key: str) -> str:
    """The flag of `latentry serve` that gives `key`."""
    return f"--{key.replace('_', '-')}"


def variable_of(key: str) -> str:
    """The environment variable that gives `key`."""
    return f"{PREFIX}{key.upper()}"


def read(flags: Mapping[str, Any], environ: Mapping[str, str], config: Path | None, known: Collection[str]) -> Sources:
    """Read all sources. Raises `ConfigError` for a key that is not `known`, or a file that cannot be read."""
    for key in flags:
        if key not in known:
            _refuse(flag_of(key), "no such setting", flag_of(key), [flag_of(name) for name in known])
    path = config or (Path(environ[CONFIG_VARIABLE]) if environ.get(CONFIG_VARIABLE) else None)
    return Sources(flags, _environment(environ, known), _file(path, known) if path else {}, path)


def _environment(environ: Mapping[str, str], known: Collection[str]) -> dict[str, str]:
    keys = {variable_of(key): key for key in known}
    ours = {}
    for variable, value in environ.items():
        if not variable.startswith(PREFIX) or variable in _NOT_SETTINGS or _is_of_kubernetes(variable, value):
            continue
        if variable not in keys:
            _refuse(variable, "no such setting (environment variable)", variable.upper(), keys)
        ours[keys[variable]] = value
    return ours


def _is_of_kubernetes(variable: str, value: str) -> bool:
    if variable.endswith("_PORT") and _KUBERNETES_VALUE.fullmatch(value):
        return True
    return _KUBERNETES_NAME.fullmatch(variable) is not None


def _file(path: Path, known: Collection[str]) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
        if len(data) > _MAX_FILE_BYTES:
            raise ConfigError(f"{path}: got more than {_MAX_FILE_BYTES} bytes, wanted a TOML file")
        values = tomllib.loads(data.decode())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}, wanted a TOML file") from error
    except (ValueError, RecursionError) as error:  # no UTF-8, no TOML, a path with a null byte
        raise ConfigError(f"{path}: {' '.join(str(error).split())}, wanted TOML in UTF-8") from error
    for key in values:
        if key not in known:
            _refuse(f"{path}: {key!r}", "no such setting", key, known)
    return values


def _refuse(where: str, what: str, key: str, known: Collection[str]) -> None:
    near = difflib.get_close_matches(key, known, 1, 0.5)
    wanted = f"did you mean {near[0]}?" if near else "latentry serve --help lists them"
    raise ConfigError(f"{where}: {what}; {wanted}")
