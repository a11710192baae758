"""The identities file: who has which token or client certificate, and which roles. Tokens are there as hashes only.

    [[identity]]
    name = "app"
    token_sha256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    roles = ["infer"]

    [[identity]]
    name = "prometheus"
    certificate = "prometheus.example"
    roles = ["metrics"]

Reads and checks the file; knows nothing of calls.
"""

from __future__ import annotations

import enum
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from serving.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# Every call is compared with every identity, so there is a bound; and the file is read between two calls.
_MOST_IDENTITIES = 1000
_MOST_BYTES = 1 << 18

# A name goes into logs and traces as it is.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SHA256 = re.compile(r"[0-9A-Fa-f]{64}")
_HEADER = re.compile(r"^[ \t]*\[\[[ \t]*identity[ \t]*\]\]", re.MULTILINE)
_FIELDS = ("name", "token_sha256", "certificate", "roles")


class Role(str, enum.Enum):
    """What an identity may do: call the models, administer the server, read the metrics."""

    INFER = "infer"
    ADMIN = "admin"
    METRICS = "metrics"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class Identity:
    """Somebody who may call. With both a token and a certificate, both are needed; "" is none."""

    name: str
    token_sha256: str
    certificate: str
    roles: frozenset[Role]


def read(path: Path) -> tuple[Identity, ...]:
    """The identities in the file. Raises `ConfigError` with the line or the field; no value of a token is repeated."""
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    return parse(data, path)


def parse(data: bytes, path: Path) -> tuple[Identity, ...]:
    """The same for what `path` would hold."""
    if len(data) > _MOST_BYTES:
        raise ConfigError(f"{path}: got more than {_MOST_BYTES} bytes, wanted at most that")
    try:
        text = data.decode()
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: got what is no TOML: {_first_line(error)}") from error
    entries = document.pop("identity", [])
    if document:
        raise ConfigError(f"{path}: got {next(iter(document))!r:.80}, wanted nothing but [[identity]]")
    if not isinstance(entries, list) or not 0 < len(entries) <= _MOST_IDENTITIES:
        raise ConfigError(f"{path}: identity: wanted 1 to {_MOST_IDENTITIES} tables [[identity]]")
    lines = [text.count("\n", 0, found.start()) + 1 for found in _HEADER.finditer(text)]
    identities: list[Identity] = []
    for number, entry in enumerate(entries):
        line = f" (line {lines[number]})" if len(lines) == len(entries) else ""
        where = f"{path}: identity {number + 1}{line}"
        try:
            identities.append(_identity(entry, identities))
        except ValueError as error:
            raise ConfigError(f"{where}: {error}") from error
    return tuple(identities)


def _identity(entry: object, before: Sequence[Identity]) -> Identity:
    if not isinstance(entry, Mapping):
        raise ValueError("wanted a table")  # noqa: TRY004 # the caller says where
    for field in entry:
        if field not in _FIELDS:
            raise ValueError(f"got {field!r:.80}, wanted only {', '.join(_FIELDS)}")
    found = Identity(
        _text(entry, "name", _NAME, "1 to 64 letters, digits, '.', '_' or '-'"),
        _text(entry, "token_sha256", _SHA256, "64 hexadecimal digits, the SHA-256 of the token").lower(),
        _text(entry, "certificate", None, "a DNS name or common name").lower(),
        _roles(entry.get("roles")),
    )
    if not found.name:
        raise ValueError("name: got none, wanted one")
    if not found.token_sha256 and not found.certificate:
        raise ValueError("got neither token_sha256 nor certificate, wanted one of them or both")
    for other in before:
        if found.name == other.name:
            raise ValueError(f"name: got {found.name} twice, wanted it once")
        if (found.token_sha256, found.certificate) == (other.token_sha256, other.certificate):
            raise ValueError(f"got the token and certificate of {other.name}, wanted others")
    return found


def _text(entry: Mapping[str, object], field: str, pattern: re.Pattern[str] | None, wanted: str) -> str:
    # What was got is not repeated: it may be a token that somebody wrote where its hash belongs.
    value = entry.get(field, "")
    if not isinstance(value, str):
        raise ValueError(f"{field}: got {type(value).__name__}, wanted {wanted}")  # noqa: TRY004
    if field in entry and not (pattern.fullmatch(value) if pattern else value.isprintable() and 0 < len(value) < 256):
        raise ValueError(f"{field}: got {len(value)} other characters, wanted {wanted}")
    return value


def _roles(value: object) -> frozenset[Role]:
    wanted = f"a list of {', '.join(Role)}"
    if not isinstance(value, list) or not value:
        raise ValueError(f"roles: wanted {wanted}")
    for role in value:
        if role not in tuple(Role):
            raise ValueError(f"roles: got {role!r:.80}, wanted {wanted}")
    return frozenset(map(Role, value))


def _first_line(error: Exception) -> str:
    return f"{error}".partition("\n")[0][:200] or type(error).__name__
