"""The calls of `latentry.v1.AdminService`: each checks its request and hands it to the reloader.

Nothing is caught here: what is raised becomes a status in the interceptor.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any

import grpc

from latentry import manifest
from latentry.manifest import ManifestError
from latentry.v1 import admin_pb2 as pb
from latentry.v1 import admin_pb2_grpc
from serving import call, logs, repository
from serving.catalog import Catalog
from serving.errors import InvalidArgument, NoModel
from serving.reloader import Reloader

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]


class AdminServicer(admin_pb2_grpc.AdminServiceServicer):
    """Shows `catalog`, changes it through `reloader`; `set_level` sets the log level."""

    def __init__(self, catalog: Catalog, reloader: Reloader, set_level: Callable[[str], None] = logs.set_level) -> None:
        self._catalog = catalog
        self._reloader = reloader
        self._set_level = set_level

    async def ListVersions(self, request: pb.ListVersionsRequest, context: Context) -> pb.ListVersionsResponse:  # noqa: N802
        return pb.ListVersionsResponse(versions=await self._all())

    async def LoadModel(self, request: pb.LoadModelRequest, context: Context) -> pb.LoadModelResponse:  # noqa: N802
        model = await self._reloader.load(_name(request.name), _version(request.version))
        log.info("%s: load %s version %d", _who(), request.name, request.version)
        await self._reloader.followed()
        return pb.LoadModelResponse(status=self._status(model.manifest.name, model.manifest.version))

    async def UnloadModel(self, request: pb.UnloadModelRequest, context: Context) -> pb.UnloadModelResponse:  # noqa: N802
        self._reloader.unload(_name(request.name), _version(request.version))
        log.info("%s: unload %s version %d", _who(), request.name, request.version)
        await self._reloader.followed()
        return pb.UnloadModelResponse()

    async def SetLabel(self, request: pb.SetLabelRequest, context: Context) -> pb.SetLabelResponse:  # noqa: N802
        version = None if request.version == 0 else _version(request.version)
        self._reloader.set_label(_name(request.name), _name(request.label, "label"), version)
        meaning = "none" if version is None else f"version {version}"
        log.info("%s: label %s of %s: %s", _who(), request.label, request.name, meaning)
        await self._reloader.followed()
        return pb.SetLabelResponse()

    async def Scan(self, request: pb.ScanRequest, context: Context) -> pb.ScanResponse:  # noqa: N802
        log.info("%s: scan", _who())
        await self._reloader.scan()
        await self._reloader.followed()
        return pb.ScanResponse(versions=await self._all())

    async def SetLogLevel(self, request: pb.SetLogLevelRequest, context: Context) -> pb.SetLogLevelResponse:  # noqa: N802
        before = logs.level()
        if request.level not in logs.LEVELS:
            raise InvalidArgument("level", repr(request.level[:64]), f"one of {', '.join(logs.LEVELS)}")
        log.warning("%s: log level %s", _who(), request.level)
        self._set_level(request.level)
        return pb.SetLogLevelResponse(before=before)

    async def _all(self) -> list[pb.VersionStatus]:
        there: set[tuple[str, int]] = {(m.manifest.name, m.manifest.version) for m in self._catalog.all()}
        there.update((name, version) for name, refused in self._catalog.refused.items() for version in refused)
        try:
            found = await asyncio.to_thread(repository.scan, self._reloader.root)
        except NoModel:  # it cannot be read now; what is loaded is still told
            return self._statuses(there)
        there.update((name, version) for name, versions in found.versions.items() for version in versions)
        return self._statuses(there)

    def _statuses(self, versions: Iterable[tuple[str, int]]) -> list[pb.VersionStatus]:
        return [self._status(name, version) for name, version in sorted(versions)]

    def _status(self, name: str, version: int) -> pb.VersionStatus:
        model = self._catalog.versions(name).get(version)
        refusal = self._catalog.refusals(name).get(version)
        state = pb.VERSION_STATE_AVAILABLE if refusal is None else pb.VERSION_STATE_REFUSED
        if model is not None:
            state = pb.VERSION_STATE_READY if model.up else pb.VERSION_STATE_FAILED
        labels = sorted(self._catalog.labels_of(name, version))
        reason = "" if refusal is None else refusal.reason
        return pb.VersionStatus(name=name, version=version, state=state, reason=reason, labels=labels)


def _name(name: str, field: str = "name") -> str:
    try:
        return manifest.check_name(name)
    except ManifestError as error:
        raise InvalidArgument(
            field, repr(name[:64]), "1 to 64 of a-z 0-9 . _ -, the first a letter or digit"
        ) from error


def _version(version: int) -> int:
    if not 1 <= version < 10**18:
        raise InvalidArgument("version", version, "1 or more")
    return version


def _who() -> str:
    record = call.current()
    return record.identity or record.peer or "somebody"
