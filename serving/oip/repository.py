"""The repository as the protocol shows it, and loading and unloading through the `Reloader`.

A model is loaded and unloaded as a whole: `fashion_encoder` means `fashion` and all that it appears as.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterator, Mapping

from latentry import manifest
from latentry.manifest import ManifestError
from latentry.printable import plain
from serving import call, repository
from serving.catalog import Catalog
from serving.errors import Conflict, InvalidArgument, ModelNotFound, NoModel
from serving.inference import grpc_service_pb2 as oip
from serving.oip import faces
from serving.reloader import Reloader

log = logging.getLogger(__name__)

READY, UNAVAILABLE = "READY", "UNAVAILABLE"
_FAILED = "its engine failed and is being restarted"
_UNLOADED = "unloaded"
_ALWAYS = (faces.ENCODER, faces.DECODER, faces.SAMPLE, faces.INTERPOLATE, faces.RECONSTRUCT)  # of whatever model
_TOLERATED = frozenset({"unload_dependents"})
_MAX_VERSION = 10**18 - 1
_LONGEST = 64

Index = oip.RepositoryIndexResponse.ModelIndex


def index(catalog: Catalog, on_disk: Mapping[str, Mapping[int, object]], ready_only: bool) -> list[Index]:
    """What is loaded; what was refused, and why; and what else is `on_disk`."""
    loaded = {(model.manifest.name, model.manifest.version) for model in catalog.all()}
    found = [
        Index(name=face.name, version=face.version, state=READY if face.model.up else UNAVAILABLE)
        for face in faces.faces(catalog)
    ]
    for each in found:
        each.reason = "" if each.state == READY else _FAILED
    refused = {(name, v): why.reason for name, versions in catalog.refused.items() for v, why in versions.items()}
    others = {(name, v): _UNLOADED for name, versions in on_disk.items() for v in versions} | refused
    for (name, version), reason in others.items():
        if (name, version) not in loaded:
            found += _unavailable(name, version, reason)
    found.sort(key=lambda each: (each.name, int(each.version)))
    return [each for each in found if each.state == READY or not ready_only]


async def on_disk(reloader: Reloader) -> Mapping[str, Mapping[int, object]]:
    """The versions in the repository; none if it cannot be read now."""
    try:
        return (await asyncio.to_thread(repository.scan, reloader.root)).versions
    except NoModel:
        return {}


async def load(request: oip.RepositoryModelLoadRequest, reloader: Reloader) -> None:
    """Load the newest version in the repository, or the one that a parameter `version` names."""
    version = _read_version(request.parameters, ())
    name, there = await _folders(request.model_name, reloader)
    if version is None:
        version = max(there)
    await reloader.load(name, version)
    log.info("%s: load %s version %d", _who(), name, version)
    await reloader.followed()


async def unload(request: oip.RepositoryModelUnloadRequest, reloader: Reloader, catalog: Catalog) -> None:
    """Unload every version, or the one that a parameter `version` names."""
    version = _read_version(request.parameters, _TOLERATED)
    name = request.model_name
    if not catalog.versions(name):
        name = faces.split(name)[0]
    if not catalog.versions(name):
        raise ModelNotFound(plain(request.model_name, _LONGEST), "", faces.names(catalog))
    if version is None:
        _check_all_may_go(name, catalog)
    for each in [version] if version is not None else sorted(catalog.versions(name)):
        reloader.unload(name, each)
        log.info("%s: unload %s version %d", _who(), name, each)
    await reloader.followed()


def _unavailable(name: str, version: int, reason: str) -> Iterator[Index]:
    for kind in _ALWAYS:
        yield Index(name=f"{name}_{kind}", version=str(version), state=UNAVAILABLE, reason=reason)


async def _folders(name: str, reloader: Reloader) -> tuple[str, Mapping[int, object]]:
    """The model's own name and its versions in the repository."""
    for own in (name, faces.split(name)[0]):
        try:
            manifest.check_name(own)
        except ManifestError:
            continue
        there = await asyncio.to_thread(repository.versions_of, reloader.root, own)
        if there:
            return own, there
    raise ModelNotFound(plain(name, _LONGEST), "", sorted(await on_disk(reloader)))


def _check_all_may_go(name: str, catalog: Catalog) -> None:
    """Before any is unloaded: one that must stay would leave the others unloaded."""
    if name == catalog.default or {model.manifest.name for model in catalog.all()} == {name}:
        what = "the default model" if name == catalog.default else "the only model that is loaded"
        raise Conflict(f"{name} is {what}; name a version with the parameter `version`")
    for label, version in catalog.labels(name).items():
        raise Conflict(f"{name} version {version} is called {label}; move the label first")


def _read_version(parameters: Mapping[str, oip.ModelRepositoryParameter], tolerated: Collection[str]) -> int | None:
    for key in sorted(parameters):
        if key != "version" and key not in tolerated:
            got = repr(plain(key, _LONGEST))
            raise InvalidArgument("parameters", got, "version: what is loaded is what the repository has")
    if "version" not in parameters:
        return None
    given = parameters["version"]
    kind = given.WhichOneof("parameter_choice")
    text = given.string_param if kind == "string_param" else str(given.int64_param) if kind == "int64_param" else ""
    if not (text.isascii() and text.isdigit() and len(text) <= 18 and 1 <= int(text) <= _MAX_VERSION):
        raise InvalidArgument("parameters[version]", repr(plain(text or str(kind), _LONGEST)), "1 or more")
    return int(text)


def _who() -> str:
    record = call.current()
    return record.identity or record.peer or "somebody"
