"""Models of an MLflow server: registered ones by alias or version, and what a run has logged.

The server is MLFLOW_TRACKING_URI's, and credentials come from MLFLOW_TRACKING_USERNAME and the like.  A server that
does not pass files on itself sends its client to a bucket, whose extra is needed too.

Raises:   SourceError, SourceUnavailable.
"""

import os
import re
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests

from serving.errors import SourceError, SourceUnavailable
from sources.logs import Errors, listening, told
from sources.source import (
    ATTEMPTS,
    FULL,
    READ_TIMEOUT_S,
    Say,
    Source,
    Versions,
    digest,
    folder_name,
    library,
    reason,
    shown,
)

# MLflow's own would wait for minutes, tell its makers of each use, and draw bars
_ENVIRON = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(ATTEMPTS - 1),
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": str(READ_TIMEOUT_S),
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
# of a run it takes what it gets, and tells this logger alone what did not come
_HIDDEN = "mlflow.store.artifact.runs_artifact_repo"
_REGISTERED = re.compile(r"models:/+(?P<name>[^/@']+)(?:@(?P<alias>[^/]+)|/(?P<version>\d+))?/?")
_LOGGED = re.compile(r"runs:/+(?P<run>[^/]+)/(?P<path>.+?)/?")


class MLflow(Source):
    """What both kinds have in common: a client, its errors, and the files behind an address of MLflow's own."""

    def __init__(self, url: str, say: Say) -> None:
        super().__init__(url, say)
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            raise self.error("it needs MLFLOW_TRACKING_URI, the address of the MLflow server")
        self.key = f"{self.key} at {shown(os.environ['MLFLOW_TRACKING_URI'])}"
        for name, value in _ENVIRON.items():
            os.environ.setdefault(name, value)
        self._mlflow = library("mlflow", "mlflow", self.url)
        self._exceptions = library("mlflow.exceptions", "mlflow", self.url)
        self._artifacts = library("mlflow.artifacts", "mlflow", self.url)

    @abstractmethod
    def address(self, version: int) -> str:
        """What MLflow calls a version's files."""

    def size(self, version: int) -> int | None:
        sizes = [size for _, size in self.files(version)]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    def fetch(self, version: int, into: Path, max_bytes: int) -> None:
        incoming, target = into / "incoming", into / str(version)
        incoming.mkdir(exist_ok=True)
        listed = self.files(version)
        hidden = Errors()
        with self._errors(), listening(hidden, _HIDDEN):
            try:
                brought = Path(self._artifacts.download_artifacts(self.address(version), dst_path=str(incoming)))
            except self._exceptions.MlflowException as error:
                _raise_if_full([error, *hidden.found])
                raise self._broken(version) from error
        folder = brought.parent if brought.is_file() else brought
        if not all(
            (folder / name).is_file() and size in (None, (folder / name).stat().st_size) for name, size in listed
        ):
            _raise_if_full(hidden.found)
            raise self._broken(version)
        if brought.is_file():
            target.mkdir()
            brought.rename(target / brought.name)
        else:
            brought.rename(target)
        if incoming.exists():
            incoming.rmdir()

    def files(self, version: int) -> list[tuple[str, int | None]]:
        """A version's files and their sizes."""
        with self._errors():
            return sorted(self._walk(self.address(version), ""))

    def _walk(self, address: str, folder: str) -> Iterator[tuple[str, int | None]]:
        for entry in self._artifacts.list_artifacts(f"{address}/{folder}".rstrip("/")):
            name = f"{folder}/{entry.path.rpartition('/')[2]}".lstrip("/")
            if entry.is_dir:
                yield from self._walk(address, name)
            else:
                yield name, entry.file_size

    def _broken(self, version: int) -> SourceUnavailable:
        return SourceUnavailable(f"{self.url}: not all files of version {version} came whole")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """MLflow's errors as ours."""
        try:
            with told(self.say, self.url):
                yield
        except self._exceptions.MlflowException as error:
            raise self._refused(int(error.get_http_status_code()), error) from error
        except requests.RequestException as error:
            raise self._refused(getattr(error.response, "status_code", 503), error) from error

    def _refused(self, status: int, error: Exception) -> SourceError:
        code = getattr(error, "error_code", status)
        if status in (401, 403):
            return self.error(
                f"the MLflow server refuses these credentials ({code}); they come from MLFLOW_TRACKING_USERNAME and"
                " MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
            )
        if status == 404:
            return self.error(
                f"the MLflow server has nothing of that name ({code}); correct it, or MLFLOW_TRACKING_URI"
            )
        if status == 429 or status >= 500:
            return self.unavailable(reason(error, otherwise=str(code)))
        return self.error(f"the MLflow server refuses it ({code}); correct the URL, or MLFLOW_TRACKING_URI")


class Registry(MLflow):
    """A registered model: all its versions, one of them, or whichever an alias means now."""

    def __init__(self, url: str, say: Say) -> None:
        super().__init__(url, say)
        if not (found := _REGISTERED.fullmatch(url)):
            raise self.error("an address is models:/name@alias, models:/name/3, or models:/name for all versions")
        self.name = folder_name(found["name"])
        self._registered, self._alias, self._version = found["name"], found["alias"], found["version"]

    def versions(self) -> Versions:
        with self._errors():
            client = self._mlflow.MlflowClient()
            aliases = {
                alias: int(number) for alias, number in client.get_registered_model(self._registered).aliases.items()
            }
            version = self._version or self._meant(aliases)
            entries = (
                [client.get_model_version(self._registered, str(version))]
                if version
                else client.search_model_versions(f"name='{self._registered}'")
            )
        found = {
            int(entry.version): digest([entry.version, entry.run_id, entry.source, entry.creation_timestamp])
            for entry in entries
            if entry.status == "READY"
        }
        if not found:
            raise self.error("the registered model has no version that is ready; register one")
        return Versions(found, {alias: number for alias, number in aliases.items() if number in found})

    def address(self, version: int) -> str:
        return f"models:/{self._registered}/{version}"

    def _meant(self, aliases: dict[str, int]) -> int | None:
        """The version that the alias means, or None for all of them."""
        if self._alias is None:
            return None
        if self._alias not in aliases:
            has = f"but {', '.join(sorted(aliases))}" if aliases else "and no other"
            raise self.error(f"the registered model has no alias {self._alias}, {has}; set it, or name a version")
        return aliases[self._alias]


class Run(MLflow):
    """What a run has logged under a path, version 1."""

    def __init__(self, url: str, say: Say) -> None:
        super().__init__(url, say)
        if not _LOGGED.fullmatch(url):
            raise self.error("an address is runs:/id/path, as MLflow shows it beside a run's model")

    def versions(self) -> Versions:
        return Versions({1: digest(self.files(1))})

    def address(self, version: int) -> str:
        return self.url.rstrip("/")

    def files(self, version: int) -> list[tuple[str, int | None]]:
        address, _, name = self.address(version).rpartition("/")
        if found := super().files(version):
            return found
        # a file, which nothing is listed below
        run, _, folder = address.removeprefix("runs:/").lstrip("/").partition("/")
        with self._errors():
            beside = self._artifacts.list_artifacts(run_id=run, artifact_path=folder or None)
        found = [(name, entry.file_size) for entry in beside if entry.path.rpartition("/")[2] == name]
        if not found:
            raise self.error("the run has nothing under that path; correct it")
        return found


def _raise_if_full(errors: list[BaseException]) -> None:
    for number in FULL:
        # of what its threads raised MLflow keeps the words
        if any(os.strerror(number) in str(error) for error in errors):
            raise OSError(number, os.strerror(number))
