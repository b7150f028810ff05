"""A model in S3, or in whatever speaks it at AWS_ENDPOINT_URL.

Region, endpoint and credentials come from where boto3 looks for them: the environment, ~/.aws, the instance's role.

Raises:   SourceError, SourceUnavailable.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from serving.errors import SourceError, SourceUnavailable
from sources.bucket import Bucket, Entry
from sources.logs import told
from sources.source import CONNECT_TIMEOUT_S, READ_TIMEOUT_S, Say, library, reason, shown

# the pauses between them double from a twentieth of a second on
ATTEMPTS = 8
_GONE = ("404", "NoSuchBucket", "NoSuchKey")
_CHANGED = ("412", "PreconditionFailed")


class S3(Bucket):
    """Objects by boto3."""

    def __init__(self, url: str, say: Say) -> None:
        super().__init__(url, say)
        self.key = f"{self.key} at {shown(os.environ.get('AWS_ENDPOINT_URL', ''))}"
        self._boto3 = library("boto3", "s3", self.url)
        self._botocore = library("botocore.exceptions", "s3", self.url)
        self._made: Any = None

    @property
    def _client(self) -> Any:
        if self._made is None:
            config = self._boto3.session.Config(
                connect_timeout=CONNECT_TIMEOUT_S,
                read_timeout=READ_TIMEOUT_S,
                retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
            )
            # a session of its own: boto3's default one keeps the credentials that it found first
            self._made = self._boto3.session.Session().client("s3", config=config)
        return self._made

    def entries(self, prefix: str) -> Iterable[Entry]:
        with self._errors():
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
            return [
                Entry(item["Key"], item["Size"], item["ETag"]) for page in pages for item in page.get("Contents", ())
            ]

    def entry(self, key: str) -> Entry | None:
        with self._errors():
            try:
                found = self._client.head_object(Bucket=self.bucket, Key=key)
            except self._botocore.ClientError as error:
                if _status(error) == 404:
                    return None
                raise
            return Entry(key, found["ContentLength"], found["ETag"])

    def download(self, entry: Entry, file: Path) -> None:
        with self._errors():
            self._client.download_file(self.bucket, entry.key, str(file))

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """boto3's errors as ours; its words may hold keys and signatures, its codes do not."""
        known = self._botocore
        try:
            with told(self.say, self.url):
                yield
        except known.ClientError as error:
            raise self._refused(error) from error
        except (known.NoCredentialsError, known.PartialCredentialsError) as error:
            # a machine's role comes over the network as well
            raise SourceUnavailable(
                f"{self.url}: there are no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
            ) from error
        except known.ParamValidationError as error:
            raise self.error(f"{self.bucket} is no name of a bucket; correct the URL") from error
        except known.ProfileNotFound as error:
            raise self.error("AWS_PROFILE names a profile that ~/.aws/config does not have; correct it") from error
        except ValueError as error:
            # among them botocore's own of a region
            raise self.error(
                "boto3 refuses AWS_ENDPOINT_URL or AWS_REGION; an endpoint is http(s)://host:port"
            ) from error
        except (known.BotoCoreError, self._boto3.exceptions.Boto3Error) as error:
            raise self.unavailable(reason(error)) from error

    def _refused(self, error: Any) -> SourceError:
        status, code = _status(error), error.response["Error"].get("Code", "")
        if code in _GONE or status == 404:
            return self.error(f"there is no bucket {self.bucket} or no such key ({code}); correct the URL")
        if status in (401, 403):
            return self.error(
                f"these credentials may not read bucket {self.bucket} ({code});"
                " they need s3:ListBucket and s3:GetObject, and come from AWS_ACCESS_KEY_ID or AWS_PROFILE"
            )
        if status == 429 or status >= 500 or code in _CHANGED:
            return self.unavailable(f"HTTP {status} ({code})")
        return self.error(f"S3 answers {status} ({code}); correct the URL, or AWS_REGION")


def _status(error: Any) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
