"""The flags with which the commands reach a server: where it is, how to trust it, who calls."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import grpc

from latentry.plaintext import insecure_options
from latentry.target import DEFAULT_TARGET


def add_connection_arguments(parser: argparse.ArgumentParser, default: str | None = DEFAULT_TARGET) -> None:
    """`--server` and what goes with it; without a `default` the server has to be named."""
    add = parser.add_argument
    shown = {"default": default, "help": "(default: %(default)s)"} if default else {"required": True}
    add("--server", metavar="HOST:PORT", **shown)
    add("--timeout-s", type=_seconds, default=60.0, help="for each call (default: %(default)s)")
    add("--tls", action="store_true", help="the server has a certificate of an authority that everybody trusts")
    add("--tls-ca", type=Path, metavar="FILE", help="PEM file of the authorities that the server's certificate is from")
    add("--tls-certificate", type=Path, metavar="FILE", help="PEM file of a client certificate, for a server with mTLS")
    add("--tls-key", type=Path, metavar="FILE", help="PEM file of its private key")
    add("--token-file", type=Path, metavar="FILE", help="file with the bearer token, as `latentry token` printed it")


def credentials_of(args: argparse.Namespace) -> grpc.ChannelCredentials | None:
    """What the flags say of TLS; None without it. Raises `OSError` or `ValueError`."""
    if (args.tls_certificate is None) != (args.tls_key is None):
        raise ValueError("--tls-certificate and --tls-key: got one, wanted both or neither")
    pems = [path.read_bytes() if path else None for path in (args.tls_ca, args.tls_key, args.tls_certificate)]
    return grpc.ssl_channel_credentials(*pems) if args.tls or any(pems) else None


def channel_to(server: str, credentials: grpc.ChannelCredentials | None) -> grpc.Channel:
    """A channel with gRPC's own limits: over TLS if there are `credentials`."""
    if credentials is None:
        return grpc.insecure_channel(server, insecure_options(server))
    return grpc.secure_channel(server, credentials)


def token_of(args: argparse.Namespace) -> str | None:
    """The token in `--token-file`, if there is one. Raises `OSError` or `ValueError`."""
    if args.token_file is None:
        return None
    token: str = args.token_file.read_text().strip()
    if not token.isascii() or not token or any(c.isspace() for c in token):
        raise ValueError(f"--token-file: got {args.token_file}, wanted a file with one token and nothing else")
    return token


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"got {text}, wanted seconds, more than 0")
    return seconds
