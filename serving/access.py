"""Who may do what: a bearer token or a client certificate, to an identity, to its roles.

    metadata ─ token ────────┐
                             ├─ identity ─ has the role? ─ its name
    TLS ────── certificate ──┘

Knows nothing of gRPC's or HTTP's messages: it is given a header's value and the names in a verified certificate.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from serving import identities
from serving.errors import ConfigError, PermissionDenied, Unauthenticated
from serving.file_changes import FileChanges
from serving.identities import Identity, Role

__all__ = ["Access", "Role", "credentials_of", "names_of"]

log = logging.getLogger(__name__)

# RFC 6750's token68, bounded: gRPC itself refuses headers of more than 16 KiB.
_BEARER = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr] +([A-Za-z0-9._~+/-]{1,512}=*)")
# What every client whose certificate the CA has signed may do when there is no identities file.
_SIGNED = frozenset({Role.INFER, Role.METRICS})


class Access:
    """Decides; `enabled` is whether there is anything to decide. Raises `ConfigError` when the file is bad.

    The file is read again when it has changed, which is looked for at most once a second. When the new one is bad, the
    identities from before stay, and the log says why, once.
    """

    def __init__(self, file: Path | None, client_ca: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self.enabled = file is not None or client_ca
        self._file = file
        self._identities: tuple[Identity, ...] = ()
        if file is not None:
            self._changes = FileChanges([file], clock)
            self._identities = identities.read(file)
            _warn_if_public(file)

    def authorise(self, role: Role, authorization: str | None, certificate_names: Sequence[str]) -> str:
        """The name of the identity that this is, which has the role; "" when access is not restricted.

        `authorization` is the header's value; `certificate_names` are those of a certificate that TLS has verified.
        Raises `Unauthenticated` or `PermissionDenied`, neither of which repeats anything of the token.
        """
        if not self.enabled:
            return ""
        if self._file is None:
            name, roles = _signed(certificate_names)
        else:
            self._follow(self._file)
            identity = self._identify(authorization, certificate_names)
            name, roles = identity.name, identity.roles
        if role not in roles:
            raise PermissionDenied(f"{name}: got roles {', '.join(sorted(roles))}, wanted {role}", name)
        return name

    def _identify(self, authorization: str | None, certificate_names: Sequence[str]) -> Identity:
        # A token that is given has to be right: a certificate does not make up for a wrong one.
        digest = hashlib.sha256(_token(authorization)).hexdigest() if authorization is not None else ""
        names = {name.lower() for name in certificate_names}
        best: Identity | None = None
        for identity in self._identities:  # all of them, always: how long it takes tells nothing
            same_token = hmac.compare_digest(identity.token_sha256, digest)
            same_certificate = not identity.certificate or identity.certificate in names
            if same_token and same_certificate and (best is None or not best.certificate):
                best = identity
        if best is not None:
            return best
        if authorization is not None:
            raise Unauthenticated("authorization: got a token that is not known, wanted one that is")
        if certificate_names:
            raise Unauthenticated("authorization: got none and a certificate that is not known, wanted Bearer TOKEN")
        raise Unauthenticated("authorization: got none, wanted Bearer TOKEN")

    def _follow(self, file: Path) -> None:
        if not self._changes.noticed():
            return
        try:
            self._identities = identities.read(file)
        except ConfigError as error:
            log.error("%s; the identities from before stay", error)  # noqa: TRY400 # it is one line, for the operator
        else:
            log.info("%s: read again, %d identities", file, len(self._identities))
            _warn_if_public(file)


def credentials_of(
    metadata: Iterable[tuple[str, str | bytes]] | None, auth_context: Mapping[str, Iterable[bytes]]
) -> tuple[str | None, tuple[str, ...]]:
    """What `Access.authorise` wants, of a gRPC call: `context.invocation_metadata()` and `context.auth_context()`.

    Two authorization headers are one that no token matches.
    """
    values = [value for key, value in metadata or () if key == "authorization"]
    texts = [value.decode("latin-1") if isinstance(value, bytes) else value for value in values]
    common = [name.decode(errors="replace") for name in auth_context.get("x509_common_name") or ()]
    dns = [name.decode(errors="replace") for name in auth_context.get("peer_dns") or ()]
    return ", ".join(texts) if texts else None, names_of(dns, common)


def names_of(dns: Iterable[str], common: Iterable[str]) -> tuple[str, ...]:
    """The names that a certificate goes by: its DNS names or, if it has none, its common name (RFC 6125, 6.4.4)."""
    return tuple(dns) or tuple(common)


def _token(authorization: str) -> bytes:
    found = _BEARER.fullmatch(authorization)
    if found is None:
        raise Unauthenticated("authorization: got a malformed value, wanted Bearer TOKEN")
    return found[1].encode()


def _signed(certificate_names: Sequence[str]) -> tuple[str, frozenset[Role]]:
    if not certificate_names:
        raise Unauthenticated("got no client certificate with a DNS name or common name, wanted one")
    name = "".join(c if c.isascii() and c.isprintable() else "?" for c in certificate_names[0])  # it goes into logs
    return name[:253], _SIGNED


def _warn_if_public(file: Path) -> None:
    with contextlib.suppress(OSError):  # gone again: the next look says so
        if file.stat().st_mode & 0o004:
            log.warning("%s: everybody on this machine may read it, wanted chmod o-r", file)
