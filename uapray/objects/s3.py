"""Objects of an S3 bucket below a prefix; the only importer of boto3."""

import functools
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from uapray.errors import NotFoundError, StoreError
from uapray.objects.protocol import READ_THREADS, is_reserved, round_trip, valid_key

if TYPE_CHECKING:
    from botocore.exceptions import BotoCoreError, ClientError
    from mypy_boto3_s3 import S3Client

_READ_ATTEMPTS = 3
_CLIENT_LOCK = threading.Lock()


@dataclass(frozen=True, slots=True)
class S3Objects:
    """Objects of one bucket below a prefix; endpoint and credentials from boto3's usual chain.

    Holds no client, so that it pickles; the client is made at first use and kept by the process.
    """

    bucket: str
    prefix: str = ""

    @property
    def uri(self) -> str:
        """``s3://bucket/prefix``."""
        return f"s3://{self.bucket}/{self.prefix}" if self.prefix else f"s3://{self.bucket}"

    def read(self, key: str) -> bytes:
        """See `Objects.read`; a body cut off on the way is asked for again."""
        name = self._name(key)
        with self._errors(key):
            for _ in range(_READ_ATTEMPTS - 1):
                with suppress(*_cut_off()):
                    return self._body(name)
            return self._body(name)

    def write(self, key: str, body: bytes) -> None:
        """See `Objects.write`."""
        name = self._name(key)
        with self._errors(key):
            _client().put_object(Bucket=self.bucket, Key=name, Body=body)

    def keys(self, prefix: str = "") -> list[str]:
        """See `Objects.keys`."""
        base = self._base()
        with self._errors(prefix):
            listing = _client().get_paginator("list_objects_v2")
            pages = listing.paginate(Bucket=self.bucket, Prefix=base + prefix)
            found = [item["Key"].removeprefix(base) for page in pages for item in page.get("Contents", [])]
        # A console leaves "folder/" objects behind; they are no byte strings of ours.
        return sorted(key for key in found if not key.endswith("/") and not is_reserved(key))

    def exists(self, key: str) -> bool:
        """See `Objects.exists`."""
        name = self._name(key)
        try:
            with self._errors(key):
                _client().head_object(Bucket=self.bucket, Key=name)
        except NotFoundError:
            self._find_bucket()  # HEAD has no body to tell a missing bucket from a missing object
            return False
        return True

    def delete(self, key: str) -> None:
        """See `Objects.delete`."""
        name = self._name(key)
        with self._errors(key):
            _client().delete_object(Bucket=self.bucket, Key=name)

    def check(self) -> None:
        """See `Objects.check`; some servers make a missing bucket at the first write."""
        self._find_bucket()
        round_trip(self)

    def _find_bucket(self) -> None:
        with self._errors(""):
            _client().list_objects_v2(Bucket=self.bucket, Prefix=self._base(), MaxKeys=1)

    def _body(self, name: str) -> bytes:
        return _client().get_object(Bucket=self.bucket, Key=name)["Body"].read()

    def _base(self) -> str:
        return f"{self.prefix}/" if self.prefix else ""

    def _name(self, key: str) -> str:
        return self._base() + valid_key(key)

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        from botocore.exceptions import BotoCoreError, ClientError

        where = self.uri if is_reserved(key) or not key else f"{self.uri}/{key}"
        # "from None": what boto3 raises may quote a header, and so a session token.
        try:
            yield
        except ClientError as error:
            raise _refusal(error, where, self.bucket) from None
        except BotoCoreError as error:
            raise _no_answer(error, where) from None


def _client() -> "S3Client":
    """Return this process's S3 client for the AWS settings as they are now."""
    settings = frozenset((name, value) for name, value in os.environ.items() if name.startswith("AWS_"))
    with _CLIENT_LOCK:
        return _client_of(os.getpid(), hash(settings))


@functools.lru_cache(maxsize=4)
def _client_of(_process: int, _settings: int) -> "S3Client":
    import boto3
    from botocore.config import Config

    config = Config(retries={"mode": "standard"}, connect_timeout=5, max_pool_connections=2 * READ_THREADS)
    session = boto3.session.Session()
    try:
        client = session.client("s3", config=config)
        if re.search(r"\.amazonaws\.com(\.cn)?$", urlsplit(client.meta.endpoint_url).hostname or ""):
            return client
        # Other servers seldom have a DNS name for each bucket.
        return session.client("s3", config=config.merge(Config(s3={"addressing_style": "path"})))
    except ValueError as error:
        said = _without_secrets(str(error))
        raise StoreError(f"AWS_ENDPOINT_URL, AWS_REGION: boto3 cannot use them; it says: {said}") from None


def _cut_off() -> tuple[type[Exception], ...]:
    """Return what a body raises that ends too early; boto3 retries the request, but not the body."""
    from botocore.exceptions import IncompleteReadError, ReadTimeoutError, ResponseStreamingError

    return (IncompleteReadError, ReadTimeoutError, ResponseStreamingError)


def _endpoint() -> str:
    """Return the endpoint for people: without a user and password that its URL may hold."""
    parts = urlsplit(_client().meta.endpoint_url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _refusal(error: "ClientError", where: str, bucket: str) -> StoreError:
    """Say what a server's refusal means."""
    code = str(error.response.get("Error", {}).get("Code", "no code"))
    said = _without_secrets(str(error.response.get("Error", {}).get("Message", "")))
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code == "NoSuchBucket":
        return StoreError(f"{where}: no bucket {bucket!r} at {_endpoint()}; create it or correct the URI")
    if status == 404 and error.operation_name in ("GetObject", "HeadObject"):
        return NotFoundError(f"{where}: no such object")
    if status in (401, 403) or code in ("ExpiredToken", "InvalidToken", "TokenRefreshRequired"):
        return StoreError(
            f"{where}: {_endpoint()} refused the credentials ({code});\n"
            f"check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or the profile) and the rights on {bucket!r}"
        )
    return StoreError(
        f"{where}: {_endpoint()} answered {error.operation_name} with {code}: {said}\n"
        "look whether it is an S3 server with room, and see its log; running again is safe"
    )


def _no_answer(error: "BotoCoreError", where: str) -> StoreError:
    """Say why boto3 got no answer from a server."""
    from botocore import exceptions

    if type(error) is exceptions.HTTPClientError:  # may quote a header that cannot be sent: a token
        return StoreError(f"{where}: the request could not be sent; look for blanks or line breaks in AWS_*")
    said = _without_secrets(str(error))
    match error:
        case exceptions.NoCredentialsError() | exceptions.PartialCredentialsError():
            return StoreError(
                f"{where}: expected S3 credentials, found none complete;\n"
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
            )
        case exceptions.ParamValidationError():
            return StoreError(f"{where}: expected a bucket of 3 to 63 small letters, digits, '.' and '-'")
        case exceptions.ConnectionError():
            return StoreError(f"{where}: no answer; check AWS_ENDPOINT_URL and the network\nboto3 says: {said}")
    return StoreError(f"{where}: boto3 cannot ask for it: {said}")


def _without_secrets(text: str) -> str:
    """Blank out the credentials that a quoted URL or message may hold."""
    text = re.sub(r"\S+@", "…@", text)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN"):
        if secret := os.environ.get(name, "").strip():
            text = text.replace(secret, "…")
    return text
