"""Keeps what is loaded in step with what is in the repository, and with what an administrator asks for.

    scan ─ choose versions ─ load beside the old ─ switch ─ retire the old
                                   └ refused: say why, keep the old

Changes of one model happen one after another; the repository's state decides, so a scan may come at any time.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping
from pathlib import Path

from serving import repository
from serving.catalog import Catalog, Refusal
from serving.errors import BadModel, Conflict, ModelNotFound, NoModel
from serving.loading import Loader
from serving.metrics import Metrics
from serving.model import Model
from serving.rehearsal import RehearsalFailed
from serving.repository import Fingerprint, Found
from serving.settings import Settings

log = logging.getLogger(__name__)

_TRY_AGAIN_S = 60.0  # what may mend itself, such as a rehearsal that ran out of memory
_LONGEST = 500  # characters of a reason


class Reloader:
    """Changes `catalog`. `start` loads what is to be served at first; then `scan` is to be called now and then."""

    def __init__(self, settings: Settings, catalog: Catalog, loader: Loader, metrics: Metrics) -> None:
        self.root = settings.repository
        self.max_message_bytes: int | None = None  # of the server, once it is made
        self._settings = settings
        self._catalog = catalog
        self._loader = loader
        self._metrics = metrics
        self._labels = settings.label_map
        self._loaded_from: dict[tuple[str, int], Fingerprint] = {}
        self._pinned: set[tuple[str, int]] = set()  # versions that an administrator loaded
        self._excluded: set[tuple[str, int]] = set()  # versions that he unloaded
        self._decided: set[tuple[str, str]] = set()  # labels that he set or took away
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._retiring: set[asyncio.Task[None]] = set()
        self._trouble = ""
        self._misnamed: Mapping[str, str] = {}

    async def start(self) -> None:
        """Load every version that is to be served; raises `NoModel` or `BadModel` with the first that cannot be."""
        found = await asyncio.to_thread(repository.scan, self.root)
        for name, problem in found.misnamed.items():
            raise BadModel(f"bad model: {self.root / name}: {problem}")
        if not found.versions:
            raise NoModel(f"model repository {self.root}: no model, wanted <name>/<version>/manifest.json")
        self._check_labels(found)
        for name in found.versions:
            for version in sorted(self._wanted(name, found.versions[name], ())):
                try:
                    await self._load(name, version, found.versions[name][version], rehearsed=False)
                except ValueError as error:
                    raise BadModel(f"bad model: {error}") from error
            self._show(name)
        default = self._settings.default_model
        if not self._catalog.all():
            raise NoModel(f"model repository {self.root}: none of its versions is to be served (see --versions)")
        if default and not self._catalog.versions(default):
            raise NoModel(f"--default-model: got {default}, which is not among the models of {self.root}")

    async def scan(self) -> None:
        """Bring what is loaded in step with the repository. One that cannot be read, or is empty, changes nothing."""
        try:
            found = await asyncio.to_thread(repository.scan, self.root)
            if not found.versions:
                raise NoModel(f"model repository {self.root}: no model any more")
        except NoModel as error:
            self._metrics.scan_failures.inc()
            self._say_once(f"{error}; what is loaded goes on serving")
            return
        self._say_once("")
        for name, problem in found.misnamed.items():
            if name not in self._misnamed:
                log.warning("not a model: %s: %s", name, problem)
        self._misnamed = found.misnamed
        for name in sorted({*found.versions, *(model.manifest.name for model in self._catalog.all())}):
            async with self._locks[name]:
                await self._bring_in_step(name, found.versions.get(name, {}))

    async def load(self, name: str, version: int) -> Model:
        """Load a version that is in the repository, and keep it until it is unloaded or the server ends.

        Raises `ModelNotFound` if it is not there, `Conflict` if it is refused.
        """
        async with self._locks[name]:
            folder = await self._folder(name, version)
            self._excluded.discard((name, version))
            self._pinned.add((name, version))
            if version not in self._catalog.versions(name) or await self._changed(name, {version: folder}):
                await self._try(name, version, folder)
            refusal = self._catalog.refused.get(name, {}).get(version)
            if refusal is not None:
                self._pinned.discard((name, version))
                raise Conflict(f"{name} version {version} is refused: {refusal.reason}")
            return self._catalog.versions(name)[version]

    async def unload(self, name: str, version: int) -> None:
        """Serve this version no more, until it is loaded again or the server ends.

        Raises `ModelNotFound` if it is not loaded, `Conflict` if a label names it or it is the last of all.
        """
        async with self._locks[name]:
            model = self._catalog.get(name, version)
            labels = [label for label, labelled in self._catalog.labels(name).items() if labelled == version]
            if labels:
                raise Conflict(f"{name} version {version} is called {', '.join(labels)}; move the label first")
            if self._must_stay(name):
                what = "version of the default model" if len(self._catalog.all()) > 1 else "model"
                raise Conflict(f"{name} version {version} is the only {what} that is loaded")
            self._excluded.add((name, version))
            self._pinned.discard((name, version))
            self._drop(model)

    async def set_label(self, name: str, label: str, version: int | None) -> None:
        """Give a loaded version a label, or take the label away. Raises `Conflict` or `ModelNotFound`."""
        async with self._locks[name]:
            self._catalog.get(name)
            self._catalog.set_label(name, label, version)
            self._decided.add((name, label))
            log.info("label %s of %s: %s", label, name, "none" if version is None else f"version {version}")
            self._show(name)

    def relabel(self, labels: Mapping[str, Mapping[str, int]]) -> None:
        """These are the configuration's labels from now on, whatever was decided before; the next scan applies them."""
        self._labels = labels
        self._decided.clear()

    async def close(self) -> None:
        """Wait for nothing: what is being retired is left to the end of the process."""
        for task in self._retiring:
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)

    def _wanted(self, name: str, there: Iterable[int], refused: Container[int]) -> set[int]:
        """The versions that are to be served of those that are `there`: by policy, by label, and by administrator."""
        loaded = self._catalog.versions(name)
        good = {version for version in there if version in loaded or version not in refused}
        chosen = self._settings.policy_for(name).choose(v for v in good if (name, v) not in self._excluded)
        asked = {version for version in good if (name, version) in self._pinned}
        return chosen | asked | (good & {*self._named(name).values()})

    def _must_stay(self, name: str) -> bool:
        """Whether a model has one version left that is the last of all, or of the default model that was configured."""
        if name == self._settings.default_model:
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
            wanted = self._wanted(name, folders, refused)
            stale = await self._changed(name, folders) - refused
            missing = [v for v in wanted - tried if v not in self._catalog.versions(name) or v in stale]
            if not missing:
                break
            tried.add(max(missing))
            await self._try(name, max(missing), folders[max(missing)])
        for version, model in list(self._catalog.versions(name).items()):
            if version not in wanted and not self._must_stay(name):
                self._drop(model)
        for version in [v for v in self._catalog.refused.get(name, {}) if v not in folders]:
            self._catalog.accept(name, version)
        self._show(name)

    async def _still_refused(self, name: str, folders: Mapping[int, Path]) -> set[int]:
        """The versions that were refused and about which nothing has changed."""
        now = asyncio.get_running_loop().time()
        before = {v: r for v, r in self._catalog.refused.get(name, {}).items() if v in folders}
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
        try:
            await self._load(name, version, folder, rehearsed=True)
        except (ValueError, OSError) as error:
            transient = isinstance(error, RehearsalFailed) and error.transient
            retry_at = asyncio.get_running_loop().time() + _TRY_AGAIN_S if transient else float("inf")
            reason = str(error).replace(f"{self.root.absolute()}/", "").replace(f"{self.root}/", "")[:_LONGEST]
            self._catalog.refuse(name, version, Refusal(reason, before, retry_at))
            self._metrics.reloads.labels(name, "refused").inc()
            log.error("refused %s version %d: %s", name, version, reason)  # noqa: TRY400 # the reason says it all
        self._show(name)

    async def _load(self, name: str, version: int, folder: Path, *, rehearsed: bool) -> None:
        before = (await _fingerprints({version: folder}))[version]
        model = await self._loader.load(folder, rehearsed=rehearsed, max_message_bytes=self.max_message_bytes)
        self._loaded_from[name, version] = before
        replaced = self._catalog.put(model)
        self._metrics.reloads.labels(name, "loaded").inc()
        shape = "x".join(map(str, model.manifest.image_shape))
        log.info("loaded %s version %d: %s, %d latents", name, version, shape, model.manifest.latent_dim)
        if replaced is not None:
            self._retire(replaced)

    def _drop(self, model: Model) -> None:
        name, version = model.manifest.name, model.manifest.version
        self._catalog.remove(name, version)
        self._loaded_from.pop((name, version), None)
        self._metrics.forget(name, version)
        self._metrics.reloads.labels(name, "unloaded").inc()
        log.info("unloaded %s version %d", name, version)
        self._retire(model)

    def _retire(self, model: Model) -> None:
        """Free it once the calls that use it have ended."""

        async def retire() -> None:
            if not await model.retire(self._settings.drain_s):
                log.warning("%s was freed while calls still used it", model.manifest.name)

        task = asyncio.ensure_future(retire())
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    def _check_labels(self, found: Found) -> None:
        for name, labels in self._labels.items():
            for label, version in labels.items():
                if version not in found.versions.get(name, {}):
                    wanted = f"{self.root / name / str(version)}"
                    raise NoModel(f"--labels: got {name}:{label}={version}, but there is no {wanted}")

    def _show(self, name: str) -> None:
        """Give the loaded versions their labels, and say what is refused."""
        for label, version in self._named(name).items():
            if version in self._catalog.versions(name) and self._catalog.labels(name).get(label) != version:
                self._catalog.set_label(name, label, version)
        self._metrics.labels.clear()
        for each in {model.manifest.name for model in self._catalog.all()}:
            for label, version in self._catalog.labels(each).items():
                self._metrics.labels.labels(each, label, str(version)).set(1)
        self._metrics.refused_versions.labels(name).set(len(self._catalog.refused.get(name, {})))

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


async def _fingerprints(folders: Mapping[int, Path]) -> dict[int, Fingerprint]:
    """In a thread: a disk that does not answer holds up no call."""
    return await asyncio.to_thread(lambda: {v: repository.fingerprint(folder) for v, folder in folders.items()})
