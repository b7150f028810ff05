"""A model in Google Cloud Storage.

Credentials come from where Google's library looks for them: GOOGLE_APPLICATION_CREDENTIALS, gcloud, the machine's role.

Raises:   SourceError, SourceUnavailable.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from serving.errors import SourceError, SourceUnavailable
from sources.bucket import Bucket, Entry
from sources.logs import told
from sources.source import CONNECT_TIMEOUT_S, READ_TIMEOUT_S, Say, library, reason

RETRY_S = 30.0


class GoogleStorage(Bucket):
    """Objects by google-cloud-storage."""

    def __init__(self, url: str, say: Say) -> None:
        super().__init__(url, say)
        self._storage = library("google.cloud.storage", "gs", self.url)
        self._answers = library("google.api_core.exceptions", "gs", self.url)
        self._auth = library("google.auth.exceptions", "gs", self.url)
        self._options = {
            "timeout": (CONNECT_TIMEOUT_S, READ_TIMEOUT_S),
            "retry": library("google.cloud.storage.retry", "gs", self.url).DEFAULT_RETRY.with_timeout(RETRY_S),
        }
        self._made: Any = None

    @property
    def _client(self) -> Any:
        if self._made is None:
            # what is read belongs to a bucket, and not to a project
            self._made = self._storage.Client(project=None)
        return self._made

    def entries(self, prefix: str) -> Iterable[Entry]:
        with self._errors():
            blobs = self._client.list_blobs(self.bucket, prefix=prefix, **self._options)
            return [Entry(blob.name, blob.size, str(blob.generation)) for blob in blobs]

    def entry(self, key: str) -> Entry | None:
        with self._errors():
            blob = self._client.bucket(self.bucket).get_blob(key, **self._options)
            return Entry(key, blob.size, str(blob.generation)) if blob else None

    def download(self, entry: Entry, file: Path) -> None:
        part = file.with_name(f"{file.name}.part")
        with self._errors():
            blob = self._client.bucket(self.bucket).blob(entry.key)
            blob.download_to_filename(str(part), if_generation_match=int(entry.tag), **self._options)
        part.replace(file)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Google's errors as ours; its words may hold tokens, its codes do not."""
        try:
            with told(self.say, self.url):
                yield
        except self._answers.GoogleAPICallError as error:
            raise self._refused(error) from error
        except self._auth.DefaultCredentialsError as error:
            # a machine's role comes over the network as well
            raise SourceUnavailable(
                f"{self.url}: there are no credentials; set GOOGLE_APPLICATION_CREDENTIALS to a key file, or run"
                " gcloud auth application-default login"
            ) from error
        except (self._auth.GoogleAuthError, self._answers.GoogleAPIError, ConnectionError, TimeoutError) as error:
            raise self.unavailable(reason(error)) from error

    def _refused(self, error: Any) -> SourceError:
        status = int(error.code or 0)
        if status == 404:
            return self.error(f"there is no bucket {self.bucket} or no such object; correct the URL")
        if status in (401, 403):
            return self.error(
                f"these credentials may not read bucket {self.bucket} ({status}); give them the role"
                " Storage Object Viewer, or set GOOGLE_APPLICATION_CREDENTIALS to others"
            )
        if status in (408, 412, 429) or status >= 500:
            return self.unavailable(f"HTTP {status}")
        return self.error(f"Google answers {status}; correct the URL")
