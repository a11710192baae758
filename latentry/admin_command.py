"""The command `latentry admin`: what is served by a running server, and changes to it."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import grpc

from latentry.connection import add_connection_arguments, channel_to, credentials_of, token_of
from latentry.plaintext import check_token
from latentry.v1 import admin_pb2 as pb
from latentry.v1 import admin_pb2_grpc

DESCRIPTION = """\
Say or change what a running server serves. It needs `latentry serve --admin-port PORT`; --server is that port.

  latentry admin list --server localhost:50052
  latentry admin load fashion 2 --server localhost:50052       beside what serves; again if its folder changed
  latentry admin label fashion stable 2 --server localhost:50052
  latentry admin unload fashion 1 --server localhost:50052
  latentry admin scan --server localhost:50052                 look at the repository now
  latentry admin log-level debug --server localhost:50052
"""

_STATES = {
    pb.VERSION_STATE_AVAILABLE: "available",
    pb.VERSION_STATE_READY: "ready",
    pb.VERSION_STATE_FAILED: "failed",
    pb.VERSION_STATE_REFUSED: "refused",
}


def add_admin_arguments(parser: argparse.ArgumentParser) -> None:
    """The actions of `latentry admin` and their arguments."""
    parser.description = DESCRIPTION
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION", title="actions")

    def add(name: str, about: str, *positions: tuple[str, type]) -> None:
        action = actions.add_parser(name, help=about, description=about)
        for position, kind in positions:
            action.add_argument(position, type=kind)
        add_connection_arguments(action, default=None)

    model = (("name", str), ("version", int))
    add("list", "every version in the repository, and what became of it")
    add("scan", "look at the repository now")
    add("load", "serve a version", *model)
    add("unload", "serve a version no more", *model)
    add("label", "let a label mean a version; 0 takes it away", ("name", str), ("label", str), ("version", int))
    add("log-level", "log from this level on: debug, info, warning or error", ("level", str))


def run_admin(args: argparse.Namespace) -> int:
    """Make the call and print what came of it; 1 if it was refused, 2 if the flags make no sense."""
    try:
        credentials, token = credentials_of(args), token_of(args)
        if token is not None:
            check_token(token, args.server, secure=credentials is not None)
    except (OSError, ValueError) as error:
        print(f"latentry admin: {error}", file=sys.stderr)
        return 2
    metadata = [("authorization", f"Bearer {token}")] if token else []
    with channel_to(args.server, credentials) as channel:
        stub = admin_pb2_grpc.AdminServiceStub(channel)

        def call(rpc: str, request: Any) -> Any:
            return getattr(stub, rpc)(request, timeout=args.timeout_s, metadata=metadata)

        try:
            _act(args, call)
        except grpc.RpcError as error:
            print(f"latentry admin: {error.code().name}: {error.details()}", file=sys.stderr)
            return 1
    return 0


def _act(args: argparse.Namespace, call: Any) -> None:
    if args.action == "list":
        _print(call("ListVersions", pb.ListVersionsRequest()).versions)
    elif args.action == "scan":
        _print(call("Scan", pb.ScanRequest()).versions)
    elif args.action == "load":
        _print([call("LoadModel", pb.LoadModelRequest(name=args.name, version=args.version)).status])
    elif args.action == "unload":
        call("UnloadModel", pb.UnloadModelRequest(name=args.name, version=args.version))
        print(f"{args.name} {args.version}  unloaded")
    elif args.action == "label":
        call("SetLabel", pb.SetLabelRequest(name=args.name, label=args.label, version=args.version))
        print(f"{args.name}  {args.label} means {args.version or 'nothing'}")
    else:
        before = call("SetLogLevel", pb.SetLogLevelRequest(level=args.level)).before
        print(f"log level {args.level}, before {before}")


def _print(statuses: Any) -> None:
    for status in statuses:
        called = f"  called {', '.join(status.labels)}" if status.labels else ""
        why = f"  {status.reason}" if status.reason else ""
        print(f"{status.name} {status.version}  {_STATES.get(status.state, status.state)}{called}{why}")
