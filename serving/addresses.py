"""Addresses to listen on: whether a port is free, and keeping it for several processes that share it."""

from __future__ import annotations

import socket

from serving.errors import PortTaken


def bracketed(host: str) -> str:
    """The host as it stands before a port."""
    return f"[{host}]" if ":" in host else host


def where(host: str, port: int, metrics_port: int, admin_port: int) -> str:
    """Which ports are open, for the log."""
    administration = f", administration on port {admin_port}" if admin_port else ""
    return f"gRPC on {host}:{port}, metrics on port {metrics_port}{administration}"


def check_free(host: str, port: int) -> None:
    """Raises `PortTaken` before anything is loaded, and with a better reason than gRPC gives."""
    _bound(host, port, socket.SO_REUSEADDR).close()


def keep(host: str, port: int) -> socket.socket:
    """A socket that holds the port, or a free one for 0, and does not listen: with SO_REUSEPORT other processes of the
    same user can. Raises `PortTaken` if anybody has it now."""
    if port:
        check_free(host, port)  # without SO_REUSEPORT: another service that shares its port does not share it with us
    return _bound(host, port, socket.SO_REUSEPORT)


def _bound(host: str, port: int, option: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, option, 1)
            bound.bind(address)
        except BaseException:
            bound.close()
            raise
    except OSError as error:
        raise PortTaken(f"cannot listen on {bracketed(host)}:{port}: {error.strerror or error}") from error
    return bound
