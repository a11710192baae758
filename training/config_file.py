"""Configs as TOML text: presets, files and flags in; the run folder's config.toml out.

What a file leaves out has its default. An unknown key is refused with the nearest known one.
"""

from __future__ import annotations

import difflib
import json
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from training.config import Config
from training.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_PRESETS = Path(__file__).parent / "presets"


def presets() -> list[str]:
    """The presets' names."""
    return sorted(path.stem for path in _PRESETS.glob("*.toml"))


def read_preset(name: str) -> Config:
    """The config of a preset; raises `ConfigError` with the nearest name if there is none such."""
    if name not in presets():
        raise ConfigError(f"preset: got {name}, wanted one of {', '.join(presets())}{_nearest(name, presets())}")
    return read(_PRESETS / f"{name}.toml")


def read(path: Path) -> Config:
    """The config in a TOML file; what it leaves out has its default."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot read the config: {error}") from error
    return parse(text, str(path))


def parse(text: str, where: str) -> Config:
    """The config in TOML `text`; `where` names the text in errors."""
    try:
        return from_dict(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where}: not TOML: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def from_dict(raw: Mapping[str, Any]) -> Config:
    """The config in nested mappings, as TOML gives them."""
    return override(Config(), raw)


def override(config: Config, raw: Mapping[str, Any]) -> Config:
    """`config` with the values of `raw`, sections of keys, in place of its own."""
    sections = {}
    for name, values in raw.items():
        _known("section", name, [section.name for section in fields(Config)])
        if not isinstance(values, Mapping):
            raise ConfigError(f"{name}: got {values!r}, wanted a section [{name}]")
        section = getattr(config, name)
        kinds = typing.get_type_hints(type(section))
        for key in values:
            _known(f"key in [{name}]", key, list(kinds))
        sections[name] = replace(section, **{k: _typed(f"{name}.{k}", v, kinds[k]) for k, v in values.items()})
    return replace(config, **sections)


def to_dict(config: Config) -> dict[str, Any]:
    """Nested dictionaries of plain values, for JSON and checkpoints; what is None is left out."""
    return {
        name: {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in section.items()
            if value is not None
        }
        for name, section in asdict(config).items()
    }


def to_toml(config: Config) -> str:
    """The text that `parse` reads back to an equal config."""
    lines = []
    for name, section in to_dict(config).items():
        # JSON's strings, numbers, booleans and lists are TOML's too
        lines += [
            f"[{name}]",
            *(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in section.items()),
            "",
        ]
    return "\n".join(lines)


def _known(what: str, got: str, known: list[str]) -> None:
    if got not in known:
        raise ConfigError(f"unknown {what}: {got}{_nearest(got, known) or '; known: ' + ', '.join(known)}")


def _nearest(got: str, known: list[str]) -> str:
    matches = difflib.get_close_matches(got, known, n=1)
    return f"; did you mean {matches[0]}?" if matches else ""


def _typed(where: str, value: Any, kind: Any) -> Any:
    """`value` as `kind` wants it: whole numbers may stand for floats, lists for tuples."""
    options = typing.get_args(kind) if typing.get_origin(kind) in (types.UnionType, typing.Union) else (kind,)
    for option in options:
        if option is float and type(value) is int:
            return float(value)
        if typing.get_origin(option) is tuple and isinstance(value, list | tuple):
            items = typing.get_args(option)
            whole = len(items) == 2 and (items[1] is Ellipsis or len(value) == len(items))
            if whole and all(type(item) is items[0] for item in value):
                return tuple(value)
        if isinstance(option, type) and type(value) is option:
            return value
    raise ConfigError(f"{where}: got {value!r}, wanted {_kind_name(kind)}")


def _kind_name(kind: Any) -> str:
    options = [option for option in typing.get_args(kind) if option is not type(None)]
    if typing.get_origin(kind) is tuple:
        items = "whole numbers" if options[0] is int else "strings"
        return f"a list of {items}" if options[1] is Ellipsis else f"a list of {len(options)} {items}"
    names = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}
    return names.get(kind) or " or ".join(_kind_name(option) for option in options)
