"""The catalog: which versions of the model there are, and where each is on this machine, fetched if need be.

Runs in:  the supervisor, and the command line.
Raises:   ModelError; SourceError where the model cannot be had from where it is said to be.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import sources
from serving import model
from serving.plan import Plan, plan
from serving.settings import Settings
from sources.store import Found, Store, default_root

# why a version with this identity is not served
Refusals = Mapping[tuple[int, str], str]


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
        """Where the files of a version are, and the model folder around them."""
        root = Path(self._settings.model)
        if self._store is not None:
            root = self._store.fetch(self._source, version)
            self._held.append(root)
        return model.versions(root)[version], root

    def plan(self, policy: str, before: Plan, anew: bool = False, refused: Refusals = MappingProxyType({})) -> Plan:
        """What is to be served of what there is now; anew: all of it loaded again.

        refused: what could not be served, by its version and identity.  It is left out, or stays as it was before.
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
        made = plan(identities, policy, found.labels, self._settings.mules, before, self.place, anew)
        return replace(made, refused=reasons)

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
