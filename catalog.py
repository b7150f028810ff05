"""The catalog: which versions of the model there are, and where each is on this machine, fetched if need be.

Runs in:  the supervisor, and the command line.
Raises:   ModelError; SourceError where the model cannot be had from where it is said to be.
"""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import sources
from serving import model
from serving.errors import ModelError
from serving.model import ModelFolder
from serving.plan import Plan, Release, choose, make_plan
from serving.settings import Settings
from sources.store import Found, Store, default_root

# why a version with this identity is not served
Refusals = Mapping[tuple[int, str], str]


class BrokenVersion(ModelError):
    """A version that is no model, by its number and identity."""

    def __init__(self, version: int, identity: str, reason: str) -> None:
        super().__init__(reason)
        self.key = version, identity


class Catalog:
    """One model, in a folder of this machine or elsewhere."""

    def __init__(
        self, settings: Settings, environ: Mapping[str, str], run_dir: Path, say: Callable[[str], None]
    ) -> None:
        self._settings = settings
        self._source = sources.open(settings.model, say)
        self._store: Store | None = None
        if self._source.path is None:
            self._store = Store(default_root(environ, run_dir), settings.store_max_gb << 30)
        # model folders that the store must keep, once for each time that they were asked for
        self._held: list[Path] = []
        # why the source gave no answer, the last time
        self.stale = ""
        self._numbers = itertools.count(1)

    def look(self) -> Found:
        """The versions that there are now, or were when the source last answered, and their labels."""
        if self._store is not None:
            found = self._store.look(self._source)
            self.stale = found.reason
            return found
        root = Path(self._settings.model)
        identities = {version: model.identity(path, root) for version, path in model.versions(root).items()}
        return Found(identities, model.labels(root))

    def place(self, version: int) -> tuple[Path, Path]:
        """Where the files of a version are, and the model folder around them.  ModelError when they are no model."""
        root = Path(self._settings.model)
        if self._store is not None:
            root = self._store.fetch(self._source, version)
            self._held.append(root)
        path = model.versions(root)[version]
        ModelFolder.open(path, root, version)
        return path, root

    def plan(
        self,
        policy: str,
        before: Plan,
        anew: bool = False,
        refused: Refusals = MappingProxyType({}),
        pinned: bool = False,
    ) -> Plan:
        """What is to be served of what there is now; anew: all of it loaded again.

        refused: what could not be served, by its version and identity.  It is left out, or stays as it was before.
        pinned: whether the policy goes before the labels.  BrokenVersion where one that is to be served is no model.
        """
        found = self.look()
        identities, reasons = {}, {}
        for version, identity in found.identities.items():
            if (version, identity) not in refused:
                identities[version] = identity
                continue
            reasons[version] = refused[version, identity]
            for release in before.releases:
                if release.version == version:
                    identities[version] = release.identity

        def place(version: int) -> tuple[Path, Path]:
            try:
                return self.place(version)
            except ModelError as error:
                raise BrokenVersion(version, identities[version], str(error)) from error

        labels = found.labels
        if pinned or self._store is not None:
            # those for versions that are not served wait until they are; so do a registry's aliases
            chosen = choose(identities, policy)
            labels = {label: version for label, version in labels.items() if version in chosen}
        try:
            made = make_plan(identities, policy, labels, self._settings.mules, before, place, self._numbers, anew)
        except ModelError as error:
            if not reasons or isinstance(error, BrokenVersion):
                raise
            told = "; ".join(f"version {version} cannot be served: {reason}" for version, reason in reasons.items())
            raise ModelError(f"{error}; {told}") from error
        return replace(made, refused=reasons)

    def identity(self, release: Release) -> str:
        """That of a release now: its model may have written into its own folder while it was loaded."""
        return release.identity if self._store is not None else model.identity(release.path, release.root)

    def keep(self, served: Plan) -> None:
        """The store may drop what is not to be served any more."""
        if self._store is not None:
            wanted = {release.root for release in served.releases}
            kept = []
            for root in self._held:
                if root in wanted:
                    wanted.discard(root)
                    kept.append(root)
                else:
                    self._store.release(root)
            self._held = kept
