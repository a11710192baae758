"""The settings as flags, as TOML and as docs/configuration.md, all from what serving/settings.py says of them.

`python -m serving.settings_text` writes the document to standard output (`make docs`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from serving.settings import Settings
from serving.settings_checks import is_list, wanted
from serving.settings_sources import Sources, flag_of, variable_of

FIELDS: Mapping[str, FieldInfo] = Settings.model_fields

GROUPS = {
    "models": "models",
    "listening": "listening",
    "device": "device",
    "batching": "batching and back-pressure",
    "security": "security",
    "lifecycle": "lifecycle",
    "observability": "observability",
}

_HEAD = """\
# Configuration

<!-- Written by `make docs` (`python -m serving.settings_text >docs/configuration.md`). Edit serving/settings.py. -->

Every setting of `latentry serve`. A flag wins over the environment, that over one TOML file (`--config FILE` or
`LATENTRY_CONFIG`), that over the default. Keys that do not exist are refused, with the nearest that does, wherever they
stand; so is whatever a setting cannot be, with exit status 2 and one line that says which setting, where it came from,
what was got and what was wanted. `latentry serve --print-config` prints what is in effect, as TOML, with where each
value comes from, and exits. [operations.md](operations.md) says which to turn when.

- **TOML**: flat keys, lists as arrays: `versions = ["latest:2", "fashion=1,3"]`. A path is relative to the working
  directory.
- **Environment**: `LATENTRY_` and the key in upper case. Lists are separated by blanks or semicolons (a policy such as
  `1,3` has commas itself): `LATENTRY_VERSIONS="latest:2 fashion=1,3"`. An empty value stands for none. What Kubernetes
  adds for Services called latentry or latentry-... (`LATENTRY_PORT=tcp://...`, `LATENTRY_SERVICE_HOST`) is passed over.
- **Flags**: `--` and the key with hyphens: `--versions latest:2 fashion=1,3`; `--reflection` or `--no-reflection`.

Which versions serve (`versions`): `latest` is the newest, `latest:N` the newest N, `all` all, `1,3` those; `NAME=`
before one of these is for that model alone, and the others keep the policy without a name.
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """A flag for each setting, and `--config`. Values stay text: Settings reads them, and says what is wrong."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file of settings (default: $LATENTRY_CONFIG)")
    for group, title in GROUPS.items():
        section = parser.add_argument_group(title)
        for key in _keys(group):
            field = FIELDS[key]
            text = f"{field.description} (default: {default_text(field)})".replace("%", "%%")
            if field.annotation is bool:
                section.add_argument(
                    flag_of(key), action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text
                )
            else:
                nargs = "+" if is_list(field) else None
                section.add_argument(
                    flag_of(key), nargs=nargs, default=argparse.SUPPRESS, metavar=_metavar(field), help=text
                )


def given(args: argparse.Namespace) -> dict[str, Any]:
    """The settings among the flags that were given."""
    return {key: value for key, value in vars(args).items() if key in FIELDS}


def to_toml(settings: Settings, sources: Sources) -> str:
    """The settings as a TOML file that gives the same settings, with where each value comes from."""
    lines = ["# What latentry serve runs with: flags over environment over file over defaults."]
    for group, title in GROUPS.items():
        lines += ["", f"# {title}"]
        for key in _keys(group):
            value = getattr(settings, key)
            said = f"# {key}: none" if value is None else f"{key} = {_toml(value)}"
            lines.append(f"{said}  # {_printable(sources.origin(key))}")
    return "\n".join(lines) + "\n"


def to_markdown() -> str:
    """docs/configuration.md."""
    parts = [_HEAD.rstrip()]
    for group, title in GROUPS.items():
        parts += [
            f"\n## {title.capitalize()}\n",
            "| key | default | values | what, and its price |",
            "|---|---|---|---|",
        ]
        for key in _keys(group):
            field = FIELDS[key]
            parts.append(f"| `{key}` | {default_text(field)} | {wanted(field)} | {field.description} |")
    example = f"`{flag_of('max_batch_size')} 32` or `{variable_of('max_batch_size')}=32` or `max_batch_size = 32`"
    parts.append(f"\nOne setting, three ways: {example} in the file.")
    return "\n".join(parts) + "\n"


def default_text(field: FieldInfo) -> str:
    """A default, for people."""
    value = field.default
    if value is None or value in ((), ""):
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}"
    return " ".join(value) if isinstance(value, tuple) else str(value)


def _keys(group: str) -> Iterator[str]:
    for key, field in FIELDS.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra["group"] == group:
            yield key


def _metavar(field: FieldInfo) -> str:
    if get_origin(field.annotation) is Literal:
        return "|".join(get_args(field.annotation))
    kinds = get_args(field.annotation) or (field.annotation,)
    return "PATH" if Path in kinds else "N" if int in kinds else "X" if float in kinds else "TEXT"


def _toml(value: object) -> str:
    if isinstance(value, str | Path):
        return json.dumps(str(value), ensure_ascii=False)  # what JSON escapes, TOML escapes alike
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return "true" if value is True else "false" if value is False else repr(value)


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)


if __name__ == "__main__":
    sys.stdout.write(to_markdown())
