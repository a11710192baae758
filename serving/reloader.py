"""Keeps what is loaded in step with what is in the repository, and with what an administrator asks for.

    scan ─ choose versions ─ load beside the old ─ switch ─ retire the old
                                   └ refused: say why, keep the old

Changes of one model happen one after another; the repository's state decides, so a scan may come at any time.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from latentry import manifest
from latentry.manifest import ManifestError
from serving import repository
from serving.catalog import Catalog, Refusal
from serving.errors import BadModel, Conflict, ModelNotFound, NoModel
from serving.metrics import Metrics
from serving.model import Model
from serving.rehearsal import RehearsalFailed
from serving.repository import Fingerprint, Found
from serving.settings import Settings
from serving.tasks import Tasks

if TYPE_CHECKING:  # front ends know of reloaders, and are to load no ONNX Runtime
    from serving.loading import Loader

log = logging.getLogger(__name__)

_TRY_AGAIN_S = 60.0  # what may mend itself, such as a rehearsal that ran out of memory
_LONGEST_PAUSE_S = 3600.0
_LONGEST = 500  # characters of a reason


class Reloader:
    """Changes `catalog`. `start` loads what is to be served at first; then `scan` is to be called now and then.

    `followed` returns when all that answers calls follows the catalog: who tells of a change waits for it first.
    """

    def __init__(self, settings: Settings, catalog: Catalog, loader: Loader, metrics: Metrics) -> None:
        self.root = settings.repository
        self.max_message_bytes: int | None = None  # of the server, once it is made
        self.followed: Callable[[], Awaitable[None]] = _at_once
        self._settings = settings
        self._catalog = catalog
        self._loader = loader
        self._metrics = metrics
        self._labels = settings.label_map
        self._loaded_from: dict[tuple[str, int], Fingerprint] = {}
        self._pinned: set[tuple[str, int]] = set()  # versions that an administrator loaded
        self._excluded: set[tuple[str, int]] = set()  # versions that one unloaded
        self._decided: set[tuple[str, str]] = set()  # labels that one set or took away
        self._kept: set[tuple[str, int]] = set()  # versions that serve on without their folders
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._retiring = Tasks()
        self._trouble = ""
        self._misnamed: Mapping[str, str] = {}

    async def start(self, *, again: bool = False) -> None:
        """Load every version that is to be served; raises `NoModel` or `BadModel` with the first that cannot be.

        `again`: a process that served before has ended. What cannot be served now is refused and said, as by a scan:
        it is no reason to serve nothing.
        """
        found = await asyncio.to_thread(repository.scan, self.root)
        if not again:
            _check_misnamed(found, self.root)
        if not found.versions:
            raise NoModel(f"model repository {self.root}: no model, wanted <name>/<version>/manifest.json")
        if not again:
            self._check_names(found)
        for name, folders in found.versions.items():
            refused = await self._load_all(name, folders, again)
            self._set_unasked(name, folders, refused)
            self._show(name)
        if not self._catalog.all():
            raise NoModel(f"model repository {self.root}: none of its versions is to be served (see --versions)")
        default = self._settings.default_model
        if default and not self._catalog.versions(default) and not again:
            raise NoModel(f"--default-model: got {default}, which is not among the models of {self.root}")
        self._catalog.default = default or self._catalog.all()[0].manifest.name
        if again:
            self.say_what_is_missing()

    async def _load_all(self, name: str, folders: Mapping[int, Path], again: bool) -> set[int]:
        """Load the versions of a model that are to be served; returns those that were refused."""
        refused: set[int] = set()
        while missing := self._wanted(name, folders, refused) - self._catalog.versions(name).keys():
            version = min(missing)
            before = (await _fingerprints({version: folders[version]}))[version]
            try:
                await self._load(name, version, folders[version], before, rehearsed=False)
            except ValueError as error:
                if not again:
                    raise BadModel(f"bad model: {error}") from error
                self._refuse(name, version, before, error)
                refused.add(version)
        return refused

    async def scan(self) -> None:
        """Bring what is loaded in step with the repository. One that cannot be read, or is empty, changes nothing."""
        try:
            await self._scan()
        except NoModel as error:
            self._metrics.scan_failures.inc()
            self._say_once(f"{error}; what is loaded goes on serving")

    async def _scan(self) -> None:
        found = await asyncio.to_thread(repository.scan, self.root)
        if not found.versions:
            raise NoModel(f"model repository {self.root}: no model any more")
        self._say_once("")
        for name, problem in found.misnamed.items():
            if name not in self._misnamed:
                log.warning("not a model: %s: %s", name, problem)
        self._misnamed = found.misnamed
        for name in sorted({*found.versions, *(model.manifest.name for model in self._catalog.all())}):
            async with self._locks[name]:  # read again: what was found may be old, after other models' rehearsals
                await self._bring_in_step(name, await asyncio.to_thread(repository.versions_of, self.root, name))

    async def load(self, name: str, version: int) -> Model:
        """Load a version that is in the repository, and keep it until it is unloaded or the server ends.

        Raises `ModelNotFound` if it is not there, `Conflict` if it is refused.
        """
        async with self._locks[name]:
            folder = await self._folder(name, version)
            if version not in self._catalog.versions(name) or await self._changed(name, {version: folder}):
                await self._try(name, version, folder)
            else:
                self._catalog.accept(name, version)
            refusal = self._catalog.refusals(name).get(version)
            if refusal is not None:
                raise Conflict(f"{name} version {version} is refused: {refusal.reason}")
            self._excluded.discard((name, version))
            self._pinned.add((name, version))
            self._catalog.set_unasked(name, self._catalog.unasked(name) - {version})
            self._show(name)
            return self._catalog.versions(name)[version]

    # Unloading and labelling wait for nothing, so that they are not held up by what is being loaded.

    def unload(self, name: str, version: int) -> None:
        """Serve this version no more, until it is loaded again or the server ends.

        Raises `ModelNotFound` if it is not loaded, `Conflict` if a label names it or it is the last of all.
        """
        model = self._catalog.get(name, version)
        labels = self._catalog.labels_of(name, version)
        if labels:
            raise Conflict(f"{name} version {version} is called {', '.join(labels)}; move the label first")
        if self._must_stay(name):
            what = "version of the default model" if len(self._catalog.all()) > 1 else "model"
            raise Conflict(f"{name} version {version} is the only {what} that is loaded")
        self._excluded.add((name, version))
        self._pinned.discard((name, version))
        self._drop(model)
        self._show(name)

    def set_label(self, name: str, label: str, version: int | None) -> None:
        """Give a loaded version a label, or take the label away. Raises `Conflict` or `ModelNotFound`."""
        self._catalog.get(name)
        self._catalog.set_label(name, label, version)
        self._decided.add((name, label))
        self._show(name)

    def relabel(self, labels: Mapping[str, Mapping[str, int]]) -> None:
        """These are the configuration's labels from now on; a scan applies them.

        A label about which it says the same as before stays what an administrator has made of it.
        """
        for name in {*self._labels, *labels}:
            before, after = self._labels.get(name, {}), labels.get(name, {})
            for label in {*before, *after}:
                if before.get(label) != after.get(label):
                    self._decided.discard((name, label))
                    if label not in after:
                        self._catalog.set_label(name, label, None)
                        log.info("label %s of %s: none", label, name)
        self._labels = labels

    def say_what_is_missing(self) -> None:
        """Log each label of the configuration whose version is not served."""
        for name, labels in self._labels.items():
            for label, version in labels.items():
                if (name, label) not in self._decided and version not in self._catalog.versions(name):
                    log.error("label %s of %s: version %d is not served; it stays as it is", label, name, version)

    async def close(self) -> None:
        """Wait for nothing: what is being retired is left to the end of the process."""
        self._retiring.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)

    def _wanted(self, name: str, there: Collection[int], refused: Collection[int]) -> set[int]:
        """The versions that are to be served of those that are `there`: by policy, by label, and by administrator."""
        return self._asked(name, there, refused) | (self._good(name, there, refused) & {*self._named(name).values()})

    def _asked(self, name: str, there: Collection[int], refused: Collection[int]) -> set[int]:
        """Of these, those that are served by policy or by administrator."""
        good = self._good(name, there, refused)
        chosen = self._settings.policy_for(name).choose(v for v in good if (name, v) not in self._excluded)
        return chosen | {version for version in good if (name, version) in self._pinned}

    def _good(self, name: str, there: Collection[int], refused: Collection[int]) -> set[int]:
        """Those that can be served: not refused, or loaded before their folders were spoilt."""
        loaded = self._catalog.versions(name)
        return {version for version in there if version in loaded or version not in refused}

    def _set_unasked(self, name: str, there: Collection[int], refused: Collection[int]) -> None:
        self._catalog.set_unasked(name, {*self._catalog.versions(name)} - self._asked(name, there, refused))

    def _must_stay(self, name: str) -> bool:
        """Whether a model has one version left that is the last of all, or of the default model."""
        if name == self._catalog.default:
            return len(self._catalog.versions(name)) == 1
        return len(self._catalog.all()) == 1

    def _named(self, name: str) -> dict[str, int]:
        """The labels of a model's versions: those of the configuration, where an administrator has not decided."""
        decided = {label for model, label in self._decided if model == name}
        configured = {label: v for label, v in self._labels.get(name, {}).items() if label not in decided}
        return {**self._catalog.labels(name), **configured}

    async def _bring_in_step(self, name: str, folders: Mapping[int, Path]) -> None:
        tried: set[int] = set()  # each once a scan, so that a folder that is being written cannot hold it up
        while True:
            refused = await self._still_refused(name, folders)
            changed = await self._changed(name, folders)
            # From here to the end nothing is waited for: labels that move meanwhile count.
            for version in self._catalog.versions(name).keys() & folders.keys() - changed:
                self._catalog.accept(name, version)  # it was spoilt in place, and is as it was
            wanted, stale = self._wanted(name, folders, refused), changed - refused
            missing = [v for v in wanted - tried if v not in self._catalog.versions(name) or v in stale]
            if not missing:
                break
            tried.add(max(missing))
            await self._try(name, max(missing), folders[max(missing)])
        for version, model in list(self._catalog.versions(name).items()):
            if version in wanted:
                self._kept.discard((name, version))
            elif self._must_stay(name) or version in self._named(name).values():
                self._keep(name, version)
            else:
                self._drop(model)
        for version in [v for v in self._catalog.refusals(name) if v not in folders]:
            self._catalog.accept(name, version)
        self._set_unasked(name, folders, refused)
        self._show(name)

    async def _still_refused(self, name: str, folders: Mapping[int, Path]) -> set[int]:
        """The versions that were refused and about which nothing has changed."""
        now = asyncio.get_running_loop().time()
        before = {v: r for v, r in self._catalog.refusals(name).items() if v in folders}
        prints = await _fingerprints({version: folders[version] for version in before})
        return {v for v, refusal in before.items() if now < refusal.retry_at and refusal.folder == prints[v]}

    async def _changed(self, name: str, folders: Mapping[int, Path]) -> set[int]:
        """The loaded versions whose folders are not what they were loaded from."""
        loaded = {version: folders[version] for version in self._catalog.versions(name) if version in folders}
        prints = await _fingerprints(loaded)
        return {version for version in loaded if prints[version] != self._loaded_from.get((name, version))}

    async def _try(self, name: str, version: int, folder: Path) -> None:
        """Load it beside what is there, and switch; or refuse it."""
        before = (await _fingerprints({version: folder}))[version]
        loaded = self._catalog.versions(name).get(version)
        if loaded is not None and await asyncio.to_thread(_holds, folder, loaded.digest):
            self._loaded_from[name, version] = before  # a note was added, or the same files were written again
            self._catalog.accept(name, version)
            return
        try:
            await self._load(name, version, folder, before, rehearsed=True)
        except Exception as error:
            self._refuse(name, version, before, error)
        self._show(name)

    def _refuse(self, name: str, version: int, folder: Fingerprint, error: Exception) -> None:
        """What is wrong with the folder stays wrong until the folder changes; all else may mend itself."""
        earlier = self._catalog.refusals(name).get(version)
        tries = 1 if earlier is None or earlier.folder != folder else earlier.tries + 1
        pause = float("inf") if _is_final(error) else min(_TRY_AGAIN_S * 2 ** (tries - 1), _LONGEST_PAUSE_S)
        retry_at = asyncio.get_running_loop().time() + pause
        reason = str(error) or type(error).__name__
        reason = reason.replace(f"{self.root.absolute()}/", "").replace(f"{self.root}/", "")[:_LONGEST]
        self._catalog.refuse(name, version, Refusal(reason, folder, retry_at, tries))
        self._metrics.reloads.labels(name, "refused").inc()
        if earlier is None or earlier.reason != reason:  # once, though its files may change again and again
            log.error("refused %s version %d: %s", name, version, reason, exc_info=not isinstance(error, ValueError))

    async def _load(self, name: str, version: int, folder: Path, before: Fingerprint, *, rehearsed: bool) -> None:
        """`before` is the folder as it was before any of it was read."""
        model = await self._loader.load(folder, rehearsed=rehearsed, max_message_bytes=self.max_message_bytes)
        self._loaded_from[name, version] = before
        replaced = self._catalog.put(model)
        self._metrics.reloads.labels(name, "loaded").inc()
        shape = "x".join(map(str, model.manifest.image_shape))
        about, precision = model.manifest, model.precision
        log.info("loaded %s version %d: %s, %d latents, in %s", name, version, shape, about.latent_dim, precision)
        if replaced is not None:
            self._retire(replaced)

    def _keep(self, name: str, version: int) -> None:
        """It goes on without its folder: something depends on it. Said once."""
        if (name, version) not in self._kept:
            self._kept.add((name, version))
            log.error("%s version %d is gone from the repository; it serves on until the server ends", name, version)

    def _drop(self, model: Model) -> None:
        name, version = model.manifest.name, model.manifest.version
        self._catalog.remove(name, version)
        self._loaded_from.pop((name, version), None)
        self._retire(model)
        self._metrics.forget(name, version)
        self._metrics.reloads.labels(name, "unloaded").inc()
        log.info("unloaded %s version %d", name, version)

    def _retire(self, model: Model) -> None:
        """Free it once the calls that use it have ended."""
        model.retiring = True

        async def retire() -> None:
            if not await model.retire(self._settings.drain_s):
                log.warning("%s was freed while calls still used it", model.manifest.name)

        self._retiring.start(retire())

    def _check_names(self, found: Found) -> None:
        """Raises `NoModel` if the settings name what is not there."""
        for name, labels in self._labels.items():
            for label, version in labels.items():
                if version not in found.versions.get(name, {}):
                    wanted = f"{self.root / name / str(version)}"
                    raise NoModel(f"--labels: got {name}:{label}={version}, but there is no {wanted}")
        for name, policy in self._settings.policies.items():
            if name and not policy.choose(found.versions.get(name, {})):
                there = ", ".join(map(str, sorted(found.versions.get(name, {})))) or "none"
                raise NoModel(f"--versions: got a policy for {name} that chooses none of its versions: {there}")
        for name, versions in found.versions.items():
            if not self._settings.policy_for(name).choose(versions):
                log.warning("no version of %s is to be served (see --versions)", name)

    def _show(self, name: str) -> None:
        """Give the loaded versions their labels, and say what is refused."""
        for label, version in self._named(name).items():
            if version in self._catalog.versions(name) and self._catalog.labels(name).get(label) != version:
                self._catalog.set_label(name, label, version)
                log.info("label %s of %s: version %d", label, name, version)
        self._metrics.labels.clear()
        for each in {model.manifest.name for model in self._catalog.all()}:
            for label, version in self._catalog.labels(each).items():
                self._metrics.labels.labels(each, label, str(version)).set(1)
        self._metrics.refused_versions.labels(name).set(len(self._catalog.refusals(name)))

    async def _folder(self, name: str, version: int) -> Path:
        found = await asyncio.to_thread(repository.scan, self.root)
        folder = found.versions.get(name, {}).get(version)
        if folder is None:
            known = [f"{known} version {v}" for known, versions in found.versions.items() for v in sorted(versions)]
            raise ModelNotFound(name, f"version {version}", known)
        return folder

    def _say_once(self, trouble: str) -> None:
        if trouble and trouble != self._trouble:
            log.error("%s", trouble)
        elif self._trouble and not trouble:
            log.info("the model repository can be read again")
        self._trouble = trouble


def _check_misnamed(found: Found, root: Path) -> None:
    """Raises `BadModel`."""
    for name, problem in found.misnamed.items():
        raise BadModel(f"bad model: {root / name}: {problem}")


async def _at_once() -> None:
    """Calls are answered by the process that has the catalog."""


def _is_final(error: Exception) -> bool:
    if isinstance(error, RehearsalFailed):
        return not error.transient
    return isinstance(error, ManifestError) and not isinstance(error.__cause__, OSError)


def _holds(folder: Path, digest: str) -> bool:
    """Whether the folder holds, whole, what has this digest."""
    try:
        return manifest.read(folder).digest == digest
    except ManifestError:
        return False


async def _fingerprints(folders: Mapping[int, Path]) -> dict[int, Fingerprint]:
    """In a thread: a disk that does not answer holds up no call."""
    return await asyncio.to_thread(lambda: {v: repository.fingerprint(folder) for v, folder in folders.items()})
