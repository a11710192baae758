"""The command `latentry token`: makes a token, shows it once, and keeps its hash in an identities file."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import secrets
import sys
from pathlib import Path

from serving import identities
from serving.errors import ConfigError

DESCRIPTION = """\
Make a random 256-bit token and print it, once, to standard output. Its hash goes into the identities file, which a
running server reads again by itself; without --file, the lines for that file go to standard error.

  latentry token --name app --roles infer --file identities.toml
"""


def add_token_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `latentry token`."""
    parser.description = DESCRIPTION
    parser.add_argument("--name", required=True, help="whose token it is; the log names calls by it")
    parser.add_argument("--roles", default="infer", help="infer, admin, metrics, with commas (default: %(default)s)")
    parser.add_argument("--file", type=Path, metavar="FILE", help="identities file to add it to; made if not there")


def run_token(args: argparse.Namespace) -> int:
    """Print a new token; 0, or the exit status of what is wrong with name, roles or file."""
    token = secrets.token_urlsafe(32)
    lines = entry(args.name, token, args.roles.split(","))
    try:
        if args.file is None:
            identities.parse(lines.encode(), Path("--name, --roles"))
            print(lines, end="", file=sys.stderr)
        else:
            append(args.file, lines)
    except ConfigError as error:
        print(f"latentry token: {error}", file=sys.stderr)
        return error.exit_code
    print(token)
    return 0


def entry(name: str, token: str, roles: list[str]) -> str:
    """The lines of an identity with this token, of which they hold the hash."""
    digest = hashlib.sha256(token.encode()).hexdigest()
    listed = ", ".join(_quoted(role.strip()) for role in roles)
    return f'[[identity]]\nname = {_quoted(name)}\ntoken_sha256 = "{digest}"\nroles = [{listed}]\n'


def append(file: Path, lines: str) -> None:
    """Add the lines to the file, which is whole before and after. Raises `ConfigError`; then it is as it was."""
    file = file.resolve()  # a link stays a link
    new = file.with_name(f".{file.name}.new")
    try:
        before = file.read_bytes() if file.exists() else b""
        after = before + (b"\n" if before and not before.endswith(b"\n") else b"") + lines.encode()
        identities.parse(after, file)
        _write(new, after, file)
    except FileExistsError as error:
        raise ConfigError(f"{new}: is there already: another command is at work, or was killed") from error
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from error


def _write(new: Path, data: bytes, file: Path) -> None:
    # Of two commands at once the second fails here, so that neither loses the other's entry.
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        try:
            if file.exists():  # the server that reads it may be another user, or of its group
                was = file.stat()
                if (was.st_uid, was.st_gid) != (os.geteuid(), os.getegid()):
                    os.fchown(stream.fileno(), was.st_uid, was.st_gid)
                os.fchmod(stream.fileno(), was.st_mode & 0o660)
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
            new.replace(file)
        except BaseException:
            with contextlib.suppress(OSError):
                new.unlink()
            raise


def _quoted(text: str) -> str:
    """A TOML string. What does not belong into a name or role is refused when the lines are read again."""
    escaped = "".join(c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in text)
    return f'"{escaped}"'
