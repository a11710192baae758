"""Certificates for tests: an authority, and pairs of files of it that can be replaced while somebody reads them."""

from __future__ import annotations

import gc
import ssl
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import grpc
import pytest
import trustme


class Authority:
    """A certificate authority with a folder that its files go to."""

    def __init__(self, folder: Path) -> None:
        self._ca = trustme.CA()
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.file = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(self.file)

    @property
    def pem(self) -> bytes:
        return self._ca.cert_pem.bytes()

    def issue(
        self, *names: str, common_name: str | None = None, days: float = 30, since: float = -1
    ) -> tuple[bytes, bytes]:
        """Chain and key of a certificate that is good from `since` days from now for `days` days."""
        begin = datetime.now(timezone.utc) + timedelta(days=since)
        end = begin + timedelta(days=days)
        leaf = self._ca.issue_cert(*names, common_name=common_name, not_before=begin, not_after=end)
        return b"".join(part.bytes() for part in leaf.cert_chain_pems), leaf.private_key_pem.bytes()

    def write(self, stem: str, pair: tuple[bytes, bytes]) -> tuple[Path, Path]:
        """Write, or replace, `stem`.pem and `stem`.key."""
        files = (self.folder / f"{stem}.pem", self.folder / f"{stem}.key")
        for file, data in zip(files, pair, strict=True):
            replace(file, data)
        return files

    def server(self, **changes: float) -> tuple[Path, Path]:
        """A certificate for localhost, in files."""
        return self.write("server", self.issue("localhost", "127.0.0.1", **changes))

    def channel_credentials(self, pair: tuple[bytes, bytes] | None = None) -> grpc.ChannelCredentials:
        """For a client that trusts this authority and, with a pair, shows a certificate."""
        chain, key = pair or (None, None)
        return grpc.ssl_channel_credentials(self.pem, key, chain)

    def client_context(self, files: tuple[Path, Path] | None = None) -> ssl.SSLContext:
        """The same for HTTP."""
        context = ssl.create_default_context(cafile=str(self.file))
        if files:
            context.load_cert_chain(*files)
        return context


@pytest.fixture
def failed_handshakes() -> Iterator[None]:
    """For tests in which handshakes fail: Python 3.10 forgets to close their transports, and warns of that."""
    yield
    gc.collect()


def replace(file: Path, data: bytes) -> None:
    """Replace a file at once, readable by its owner only."""
    new = file.with_name(file.name + ".new")
    new.touch(mode=0o600)
    new.write_bytes(data)
    new.replace(file)
