"""The catalog: which versions of the model there are, and where each is on this machine, fetched if need be.

Runs in:  the supervisor, and the command line.
Raises:   ModelError; SourceError where the model cannot be had from where it is said to be.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import sources
from serving import model
from serving.errors import ModelError
from serving.model import ModelFolder
from serving.plan import STABLE, Placed, Plan, Release, choose, make_plan, named
from serving.settings import Settings
from sources.store import Found, Store, default_root

# why versions with these identities are not served
Reasons = Mapping[tuple[int, str], str]


class BrokenVersion(ModelError):
    """A version that is no model, by its number and identity; lone: nothing else was to be served."""

    def __init__(self, version: int, identity: str, reason: str) -> None:
        super().__init__(reason)
        self.version, self.identity, self.lone = version, identity, True


class Catalog:
    """One model, in a folder of this machine or elsewhere."""

    def __init__(
        self, settings: Settings, environ: Mapping[str, str], run_dir: Path, say: Callable[[str], None]
    ) -> None:
        self._settings = settings
        self._shelf: Shelf = Folder(Path(settings.model))
        if sources.is_url(settings.model):
            store = Store(default_root(environ, run_dir), settings.store_max_gb << 30)
            self._shelf = Elsewhere(settings.model, store, say)
        # what there was at the last look; None before the first, and where a pin needed none
        self.found: Found | None = None
        self._numbers = itertools.count(1)

    def look(self) -> Found:
        """The versions that there are now, or were when the source last answered, and their labels."""
        self.found = self._shelf.look()
        return self.found

    def place(self, version: int, identity: str) -> Placed:
        """Where a version is, fetched if need be, and the identity that it has there.  BrokenVersion: no model."""
        found = self._shelf.place(version, identity)
        try:
            ModelFolder.open(found.path, found.root, version)
        except ModelError as error:
            raise BrokenVersion(version, found.identity, str(error)) from error
        return found

    def plan(
        self,
        policy: str,
        before: Plan,
        anew: bool = False,
        refused: Reasons = MappingProxyType({}),
        again: bool = False,
        pinned: bool = False,
    ) -> Plan:
        """What is to be served of what there is now; anew: all of it loaded again.

        refused: what could not be served, by its version and identity.  Unless it is to be tried again, it is left out,
        or stays as it was before.  pinned: whether the policy goes before the labels, and what it names is taken from
        here, where it is, without asking anybody.  BrokenVersion where one that is to be served is no model.
        """
        known = self._shelf.recall(named(policy), before, refused) if pinned else None
        if known is not None:
            self.found = None
        found = known or self.look()
        identities, reasons = {}, {}
        for version, identity in found.identities.items():
            if again or (version, identity) not in refused:
                identities[version] = identity
                continue
            reasons[version] = refused[version, identity]
            for release in before.releases:
                if release.version == version:
                    identities[version] = release.identity
        try:
            chosen = choose(identities, policy)
            # a registry's labels, and those of what cannot be served, wait until it is; not who is to be the default
            labels = {
                label: version
                for label, version in found.labels.items()
                if version in chosen
                or not (pinned or self._shelf.labels_wait or (version in reasons and label != STABLE))
            }

            def place(version: int) -> Placed:
                return self.place(version, identities[version])

            made = make_plan(identities, policy, labels, self._settings.mules, before, place, self._numbers, anew)
        except BrokenVersion as error:
            error.lone = len(chosen) == 1
            raise
        except ModelError as error:
            if not reasons:
                raise
            told = "; ".join(f"version {version} cannot be served: {reason}" for version, reason in reasons.items())
            raise ModelError(f"{error}; {told}") from error
        served = {(release.version, release.identity) for release in made.releases}
        left_out = [key for key in found.identities.items() if key in refused and key not in served]
        return replace(made, refused={version: refused[version, identity] for version, identity in left_out})

    @property
    def stale(self) -> str:
        """Why the source gave no answer, the last time; empty when it did, or was not asked."""
        return self.found.reason if self.found else ""

    def loaded(self, plan: Plan, before: Plan) -> None:
        """What is new in a plan has been loaded, or could not be: what models wrote meanwhile is no change."""
        for release in plan.releases:
            if before.release(release.number) is None:
                self._shelf.loaded(release)

    def keep(self, served: Plan) -> None:
        """What is not to be served any more may go."""
        self._shelf.keep(served)


class Shelf(ABC):
    """Where versions are."""

    # whether labels may be for versions that are not served, as those of a registry are
    labels_wait = False

    @abstractmethod
    def look(self) -> Found:
        """What there is."""

    def recall(self, versions: set[int], before: Plan, refused: Reasons) -> Found | None:
        """What is known without a look; None unless all of these versions are here."""
        return None

    @abstractmethod
    def place(self, version: int, identity: str) -> Placed:
        """Where a version is, and which identity it has there."""

    @abstractmethod
    def loaded(self, release: Release) -> None:
        """Its model has been loaded since the last look."""

    @abstractmethod
    def keep(self, served: Plan) -> None:
        """Let go what is not served."""


class Folder(Shelf):
    """A model folder of this machine, which is served where it is."""

    def __init__(self, root: Path) -> None:
        self._root = root
        # of each version, what was there at the last look
        self._content: dict[int, dict[str, object]] = {}
        # the identity that a version had before its model wrote into its folder, by the one that it has since
        self._before: dict[int, tuple[str, str]] = {}
        # files that changed while they were loaded
        self._rewritten: set[tuple[int, str]] = set()

    def look(self) -> Found:
        paths = model.versions(self._root)
        self._content = {version: model.contents(path, self._root) for version, path in paths.items()}
        identities = {version: self._identity(version, content) for version, content in self._content.items()}
        return Found(identities, model.labels(self._root))

    def _identity(self, version: int, content: Mapping[str, object]) -> str:
        found = model.identity(content)
        now, before = self._before.get(version, ("", ""))
        return before if found == now else found

    def place(self, version: int, identity: str) -> Placed:
        path = model.versions(self._root).get(version)
        if path is None:
            raise ModelError(f"version {version} is not in {self._root} any more")
        return Placed(path, self._root, identity)

    def loaded(self, release: Release) -> None:
        """New files are the model's own.

        One that was there before and has changed may be another's, which was not loaded: that is a change, once.
        """
        version, before = release.version, self._content.get(release.version, {})
        if self._identity(version, before) != release.identity:
            return
        now = model.contents(release.path, release.root)
        changed = {(version, name) for name, about in before.items() if now.get(name) != about}
        if changed <= self._rewritten:
            self._content[version], self._before[version] = now, (model.identity(now), release.identity)
        self._rewritten |= changed

    def keep(self, served: Plan) -> None:
        """It is not this program's to remove."""


class Elsewhere(Shelf):
    """A source, and the store that keeps what was fetched from it."""

    labels_wait = True

    def __init__(self, url: str, store: Store, say: Callable[[str], None]) -> None:
        self._source = sources.open(url, say)
        self._store = store
        # model folders that the store must keep, once for each time that they were asked for
        self._held: list[Path] = []

    def look(self) -> Found:
        return self._store.look(self._source)

    def recall(self, versions: set[int], before: Plan, refused: Reasons) -> Found | None:
        kept = self._store.kept(self._source)
        here = {release.version: release.identity for release in before.releases}
        for version, identity in sorted(kept, key=lambda one: one in refused):
            here.setdefault(version, identity)
        if not versions or not versions <= here.keys():
            return None
        said = self._store.recall(self._source) or Found({}, {})
        return Found(said.identities | {version: here[version] for version in versions}, said.labels)

    def place(self, version: int, identity: str) -> Placed:
        found = self._store.fetch(self._source, version, identity)
        self._held.append(found.path)
        path = model.versions(found.path)[version]
        return Placed(path, found.path, found.identity)

    def loaded(self, release: Release) -> None:
        """Its identity is not that of the files here."""

    def keep(self, served: Plan) -> None:
        wanted = {release.root for release in served.releases}
        kept = []
        for root in self._held:
            if root in wanted:
                wanted.discard(root)
                kept.append(root)
            else:
                self._store.release(root)
        self._held = kept
