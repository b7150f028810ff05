"""Versions that could not be served, and why: they are not tried again by themselves until they change.

Runs in:  the supervisor, which keeps them in a file of the run folder for the one that is started after it.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from serving.plan import Plan


class Refusals:
    """The reasons, by the versions' numbers and identities."""

    def __init__(self, run_dir: Path) -> None:
        self._file = run_dir / "refused.json"
        self.reasons: dict[tuple[int, str], str] = {}
        with suppress(OSError, ValueError, TypeError):
            found = json.loads(self._file.read_bytes())
            self.reasons = {(int(version), str(identity)): str(reason) for version, identity, reason in found}

    def add(self, version: int, identity: str, reason: str) -> None:
        """It could not be served."""
        self._write({**self.reasons, (version, identity): reason})

    def keep(self, offered: Mapping[int, str] | None, served: Plan) -> None:
        """Only those that are offered, None where nobody has looked; and none that is served after all."""
        well = {(release.version, release.identity) for release in served.releases}
        left = {
            (version, identity): reason
            for (version, identity), reason in self.reasons.items()
            if (version, identity) not in well and (offered is None or offered.get(version) == identity)
        }
        if left != self.reasons:
            self._write(left)

    def _write(self, reasons: dict[tuple[int, str], str]) -> None:
        self.reasons = reasons
        text = [[version, identity, reason] for (version, identity), reason in reasons.items()]
        # a full disk is no reason to end what serves
        with suppress(OSError):
            new = self._file.with_suffix(".new")
            new.write_text(json.dumps(text))
            new.replace(self._file)
