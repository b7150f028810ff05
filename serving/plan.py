"""The plan: which versions of the model are to be served, and by how many replicas each.

The supervisor keeps it in a file of the run folder, and replaces it as a whole.  A mule reads it when it has a post, to
know what to load, and twice a second: a replica whose release is not in the plan any more is replaced.  So a new
version, and the way back to an old one, is a new plan and nothing else.

Runs in:  both, and in the supervisor, which alone writes it.
Raises:   ModelError, in one sentence.
"""

import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from serving.errors import ModelError

# the label of the version that answers those who name none
STABLE = "stable"
POLICY = re.compile(r"all|latest( [1-9][0-9]{0,3})?|[0-9]{1,18}(, ?[0-9]{1,18})*")


@dataclass(frozen=True)
class Release:
    """One version that is to be served."""

    # never the same twice in one uWSGI: to load a version anew is another release of it
    number: int
    version: int
    # where its files are, and where model.toml and the sample are looked for after that
    path: Path
    root: Path
    replicas: int
    # whether it answers requests that name no version
    default: bool = True
    labels: tuple[str, ...] = ()
    # changes when the files do
    identity: str = ""

    @classmethod
    def from_dict(cls, value: dict[str, object]) -> "Release":
        paths = {key: Path(str(value[key])) for key in ("path", "root")}
        labels = value["labels"]
        assert isinstance(labels, list)
        return cls(**{**value, **paths, "labels": tuple(labels)})  # type: ignore[arg-type]

    def as_dict(self) -> dict[str, object]:
        """As /readyz shows it."""
        about = {"version": self.version, "labels": self.labels, "default": self.default, "replicas": self.replicas}
        return {**about, "release": self.number}

    def __str__(self) -> str:
        return f"version {self.version}" + (f" ({', '.join(self.labels)})" if self.labels else "")


@dataclass(frozen=True)
class Plan:
    """All that is to be served; refused: what is wrong with versions that are not, by their numbers."""

    releases: tuple[Release, ...] = ()
    refused: Mapping[int, str] = field(default_factory=dict)

    def serves_as(self, other: "Plan") -> bool:
        """Whether both are the same but for the numbers of their releases."""
        return [replace(one, number=0) for one in self.releases] == [replace(one, number=0) for one in other.releases]

    def release(self, number: int) -> Release | None:
        """The release of a number, None when it is not to be served."""
        return next((release for release in self.releases if release.number == number), None)

    def beside(self, before: "Plan") -> "Plan":
        """The plan while its versions are loaded: those of the plan before keep their labels, and answer by default.

        So nobody waits for one that is to follow them and does not serve yet.
        """

        def both(release: Release) -> Release:
            old = before.release(release.number) or release
            labels = tuple(sorted({*release.labels, *old.labels}))
            return replace(release, default=release.default or old.default, labels=labels)

        return replace(self, releases=tuple(map(both, self.releases)))

    @property
    def versions(self) -> dict[str, int]:
        """The versions, by their numbers and by their labels."""
        names = {label: release.version for release in self.releases for label in release.labels}
        return names | {str(release.version): release.version for release in self.releases}

    @property
    def default(self) -> Release:
        """That which answers requests that name no version; the one that is to, where another still does."""
        return next(release for release in self.releases if release.default)

    def lacking(self, numbers: Collection[int]) -> Release:
        """The release that lacks most, where there are replicas of these; ModelError when there is no plan."""
        if not self.releases:
            raise ModelError(
                "nothing is to be served: the server's run folder has no plan; start it with entrypoint.sh"
            )
        counts = list(numbers)
        return min(self.releases, key=lambda release: counts.count(release.number) / release.replicas)

    def surplus(self, numbers: Iterable[int]) -> list[bool]:
        """Of replicas of these releases, which are too many, or of none that is to be served; none without a plan."""
        if not self.releases:
            return [False for _ in numbers]
        left = {release.number: release.replicas for release in self.releases}
        found = []
        for number in numbers:
            left[number] = left.get(number, 0) - 1
            found.append(left[number] < 0)
        return found

    def __str__(self) -> str:
        return " and ".join(map(str, self.releases))


class PlanFile:
    """Where the plan is kept."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = (0, 0)
        self._plan = Plan()

    def read(self) -> Plan:
        """The plan; the one read last, or an empty one, where there is none."""
        try:
            found = self._path.stat()
            # a new file each time: two of one moment differ in their inodes
            if (seen := (found.st_mtime_ns, found.st_ino)) != self._seen:
                value = json.loads(self._path.read_bytes())
                releases = tuple(Release.from_dict(release) for release in value["releases"])
                self._plan = Plan(releases, {int(key): reason for key, reason in value["refused"].items()})
                self._seen = seen
        except (OSError, ValueError, KeyError, TypeError, AssertionError):
            pass
        return self._plan

    def write(self, plan: Plan) -> None:
        """Replace it."""
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps(asdict(plan), default=os.fspath))
        new.replace(self._path)


class Placed(NamedTuple):
    """Where the files of a version are, the model folder around them, and the identity that they have there."""

    path: Path
    root: Path
    identity: str


def make_plan(
    identities: Mapping[int, str],
    policy: str,
    labels: Mapping[str, int],
    mules: int,
    before: Plan,
    place: Callable[[int], Placed],
    numbers: Iterator[int],
    anew: bool = False,
) -> Plan:
    """What a policy makes of the versions that there are; a release of the plan before stays, unless it has changed.

    ModelError where the policy, the labels, or how many mules there are do not fit them.

    policy: `latest`, `latest N`, `all`, or numbers; place: where a version's files are; numbers: those of releases,
    each another; anew: whether all are loaded again.  The version labelled `stable` answers those who name none, or
    else the highest.
    """
    versions = choose(identities, policy)
    for label, version in labels.items():
        if version not in versions:
            served = ", ".join(map(str, versions))
            raise ModelError(
                f"the label {label!r} is for version {version}, and version_policy = {policy} serves {served};"
                f" version_policy = {', '.join(map(str, sorted({*versions, version})))} would do"
            )
    if mules < len(versions):
        raise ModelError(
            f"version_policy = {policy} serves {len(versions)} versions ({', '.join(map(str, versions))}), each by a"
            f" replica of its own, and mules = {mules}; mules = {len(versions)} would do"
        )
    default = labels.get(STABLE, max(versions))
    share, rest = divmod(mules, len(versions))
    releases = []
    # the default first: what is left over is for it
    for version in sorted(versions, key=lambda version: (version != default, version)):
        replicas, rest = share + rest, 0
        names = tuple(sorted(label for label, labelled in labels.items() if labelled == version))
        identity = identities[version]
        release = next((old for old in before.releases if (old.version, old.identity) == (version, identity)), None)
        if release is None or anew:
            found = place(version)
            release = Release(next(numbers), version, found.path, found.root, replicas, identity=found.identity)
        releases.append(replace(release, replicas=replicas, default=version == default, labels=names))
    return Plan(tuple(releases))


def choose(found: Collection[int], policy: str) -> list[int]:
    """The versions that a policy serves, the lowest first."""
    versions = sorted(found)
    if not versions:
        raise ModelError("no version of the model can be served; /readyz tells what is wrong with each")
    if policy == "all":
        return versions
    if policy.startswith("latest"):
        return versions[-int(policy.removeprefix("latest") or 1) :]
    chosen = sorted(named(policy))
    if missing := [version for version in chosen if version not in found]:
        raise ModelError(
            f"version_policy = {policy}: there is no version {missing[0]}; there are {', '.join(map(str, versions))}"
        )
    return chosen


def named(policy: str) -> set[int]:
    """The versions that a policy names; none where it does not go by their numbers."""
    return {int(version) for version in policy.split(",")} if policy[:1].isdecimal() else set()
