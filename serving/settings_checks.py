"""What a setting's value may be, and the one line that is said when it is something else.

Knows nothing of where values come from except how to call them.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from latentry.manifest import ManifestError, check_name
from serving.settings_sources import Sources
from serving.version_policy import Unfit, read_labels, read_policies

_SEPARATORS = re.compile(r"[\s;]+")  # not the comma: the policy 1,3 has one
_DEVICE = re.compile(r"auto|cpu|cuda(:[0-9]{1,3}(,[0-9]{1,3})*)?")
_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,252}[A-Za-z0-9])?")


def read_value(value: Any, field: FieldInfo) -> Any:
    """`value` as its field's kind wants it: text to lists and to nothing, levels to lower case. Raises `Unfit`."""
    if isinstance(value, bool) and bool not in _kinds(field):
        raise Unfit(str(value).lower(), wanted(field))
    if not isinstance(value, str | Path):
        return value
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in str(value)):
        raise Unfit(ascii(str(value)), f"{wanted(field)}, in UTF-8 and without control characters")
    if isinstance(value, Path):
        return value
    if is_list(field):
        return tuple(part for part in _SEPARATORS.split(value) if part)
    if value == "" and type(None) in _kinds(field):
        return None
    return value.lower() if get_origin(field.annotation) is Literal else value


def is_list(field: FieldInfo) -> bool:
    """Whether the setting has several values."""
    return get_origin(field.annotation) is tuple


def _kinds(field: FieldInfo) -> tuple[Any, ...]:
    return get_args(field.annotation) or (field.annotation,)


def limits(field: FieldInfo) -> str:
    """The range of a number, for people; empty without one."""
    found = {name: getattr(rule, name) for rule in field.metadata for name in ("ge", "gt", "le") if hasattr(rule, name)}
    low, high = found.get("ge", found.get("gt")), found.get("le")
    if low is None or high is None:
        return f"at most {high:.0f}" if high is not None else ""
    return f"above {low:g}, at most {high:g}" if "gt" in found else f"{low:g} to {high:.0f}"


def wanted(field: FieldInfo, whole: bool = False) -> str:
    """What the setting may be, for people."""
    kinds = _kinds(field)
    if get_origin(field.annotation) is Literal:
        return f"one of {', '.join(kinds)}"
    if bool in kinds:
        return "true or false"
    if Path in kinds:
        return "a path"
    if is_list(field):
        return "a list of texts"
    if int in kinds or float in kinds:
        return ("a whole number, " if whole else "") + limits(field)
    return "text"


def explain(error: ValidationError, sources: Sources, fields: Mapping[str, FieldInfo]) -> str:
    """One line: which setting, by the name that whoever gave it knows, what was got, what was wanted."""
    first = error.errors()[0]
    unfit = first.get("ctx", {}).get("error")
    key = str(first["loc"][0]) if first["loc"] else ""
    if isinstance(unfit, Unfit):
        got, want, key = str(unfit.got), unfit.wanted, unfit.key or key
    else:
        got, want = repr(first["input"]), wanted(fields[key], first["type"].startswith("int_"))
    return f"{sources.called(key)}: got {got[:200]}, wanted {want}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`. A name other than localhost may mean anything, so it is not."""
    if host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def queue_holds_a_request(max_queue_items: int, max_request_items: int) -> None:
    """Raises `Unfit` if a call that is allowed could never be queued."""
    if max_queue_items < max_request_items:
        raise Unfit(max_queue_items, f"{max_request_items} (max_request_items) or more", "max_queue_items")


def ports_differ(ports: Mapping[str, int | None]) -> None:
    """Raises `Unfit` if two of the ports are the same; 0 is any free one."""
    seen: dict[int, str] = {}
    for key, port in ports.items():
        if port and port in seen:
            raise Unfit(port, f"another port than {seen[port]}", key)
        if port:
            seen[port] = key


def may_listen(host: str, tells_who_calls: bool, encrypts: bool) -> None:
    """Raises `Unfit` if others can reach `host` and nothing tells who they are, or tokens would cross in the open."""
    if tells_who_calls and encrypts:
        return
    why, way_out = "so callers must be known", "--tls-certificate, --tls-key and --identities or --tls-client-ca"
    if tells_who_calls:
        why, way_out = "so tokens must not cross in the open", "--tls-certificate and --tls-key"
    advice = (
        f"a loopback address: others can reach this one, {why}; give {way_out}, or --insecure if the network sees to it"
    )
    raise Unfit(repr(host), advice, "host")


def _host(value: str) -> str:
    value = value[1:-1] if re.fullmatch(r"\[.*:.*\]", value) else value
    try:
        if ":" in value:
            ipaddress.IPv6Address(value)
        elif not _HOST_NAME.fullmatch(value):
            raise ValueError
    except ValueError as error:
        raise Unfit(repr(value), "an address or a host name, without a port") from error
    return value


def _default_model(value: str) -> str:
    try:
        return check_name(value) if value else value
    except ManifestError as error:
        raise Unfit(repr(value), str(error).partition(", wanted ")[2]) from error


def _device(value: str) -> str:
    ordinals = value.partition(":")[2].split(",")
    if not _DEVICE.fullmatch(value) or len({int(n or 0) for n in ordinals}) < len(ordinals):
        raise Unfit(repr(value), "auto, cpu, cuda, cuda:N or cuda:N,M, each N once")
    return value


def _trace_endpoint(value: str) -> str:
    try:
        url = urlsplit(value)
        fits = url.scheme in ("http", "https") and url.hostname and url.username is None and url.path in ("", "/")
        if value and (not fits or url.port == 0):  # `port` raises for what is no port
            raise ValueError
    except ValueError as error:
        raise Unfit(repr(value), "http://HOST:PORT or https://HOST:PORT") from error
    return value


def _versions(value: tuple[str, ...]) -> tuple[str, ...]:
    read_policies(value)
    return value


def _labels(value: tuple[str, ...]) -> tuple[str, ...]:
    read_labels(value)
    return value


GRAMMARS: Mapping[str, Callable[[Any], Any]] = {
    "host": _host,
    "default_model": _default_model,
    "device": _device,
    "trace_endpoint": _trace_endpoint,
    "versions": _versions,
    "labels": _labels,
}
