"""Objects of an S3 bucket below a prefix; the only importer of boto3."""

import functools
import io
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from uapray.errors import NotFoundError, StoreError
from uapray.objects.protocol import READ_THREADS, is_reserved, round_trip, valid_key

if TYPE_CHECKING:
    from boto3.s3.transfer import TransferConfig
    from botocore.exceptions import BotoCoreError, ClientError
    from mypy_boto3_s3 import S3Client

PART_BYTES = 16 * 2**20
READ_TIMEOUT_S = 30
_ATTEMPTS = 6  # with botocore's backoff up to half a minute; AWS_MAX_ATTEMPTS or the profile may say otherwise
_READ_PAUSES_S = (0.2, 1.0)
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
        """See `Objects.read`; a body that is cut off or damaged on the way is asked for again."""
        return self._read(key)

    def read_end(self, key: str, size: int) -> bytes:
        """See `Objects.read_end`."""
        return self._read(key, Range=f"bytes=-{size}") if size else b""

    def write(self, key: str, body: bytes) -> None:
        """See `Objects.write`; a large one goes in parts, which become an object at the end."""
        name = self._name(key)
        with self._errors(key):
            if len(body) <= PART_BYTES:
                _client().put_object(Bucket=self.bucket, Key=name, Body=body)
            else:
                _client().upload_fileobj(io.BytesIO(body), self.bucket, name, Config=_parts())

    def write_once(self, key: str, body: bytes) -> bool:
        """See `Objects.write_once`; one conditional PUT of whatever size, for parts carry no condition everywhere.

        An answer that is lost makes boto3 ask again, and then our own object is in the way: so bytes are compared.
        """
        name = self._name(key)
        with self._errors(key):
            answer = self._put_once(name, body)
        if answer == "stands":
            try:
                return self.read(key) == body
            except NotFoundError:  # deleted just now
                return self.write_once(key, body)
        if answer == "no conditions":
            self.write(key, body)
        return True

    def _put_once(self, name: str, body: bytes) -> Literal["put", "stands", "no conditions"]:
        from botocore.exceptions import ClientError

        for pause in (0.1, 0.5, 2.0, None):
            try:
                _client().put_object(Bucket=self.bucket, Key=name, Body=body, IfNoneMatch="*")
                return "put"
            except ClientError as error:
                match error.response.get("ResponseMetadata", {}).get("HTTPStatusCode"):
                    case 412:
                        return "stands"
                    case 501:
                        return "no conditions"
                    case 409 if pause is not None:  # AWS: somebody else is just writing or deleting it
                        time.sleep(pause)
                    case _:
                        raise
        raise AssertionError("the last attempt ends")

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

    def _read(self, key: str, **part: str) -> bytes:
        name = self._name(key)
        with self._errors(key):
            for pause in _READ_PAUSES_S:
                with suppress(*_spoilt()):
                    return self._body(name, part)
                time.sleep(pause)
            return self._body(name, part)

    def _body(self, name: str, part: Mapping[str, str]) -> bytes:
        from botocore.exceptions import ClientError

        try:
            return _client().get_object(Bucket=self.bucket, Key=name, **part)["Body"].read()  # type: ignore[arg-type]
        except ClientError as error:
            if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") == 416:  # no end of an empty object
                return b""
            raise

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
    """Return this process's S3 client for the AWS settings and credentials files as they are now.

    Credentials that expire are renewed by the client itself; files that somebody rewrites it would not look at again.
    """
    settings = frozenset((name, value) for name, value in os.environ.items() if name.startswith("AWS_"))
    with _CLIENT_LOCK:
        return _client_of(os.getpid(), hash((settings, _rewritten())))


def _rewritten() -> tuple[int, ...]:
    """Return when the files of boto3's chain were last written."""
    files = (
        os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"),
        os.environ.get("AWS_CONFIG_FILE", "~/.aws/config"),
    )
    return tuple(_written_ns(os.path.expanduser(file)) for file in files)


def _written_ns(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


@functools.lru_cache(maxsize=4)
def _client_of(_process: int, _settings: int) -> "S3Client":
    import boto3
    import botocore.session
    from botocore.config import Config

    try:
        settings = botocore.session.get_session()
        session = boto3.session.Session(botocore_session=settings)
        attempts = settings.get_config_variable("max_attempts") or _ATTEMPTS
        config = Config(
            retries={"mode": "standard", "total_max_attempts": attempts},
            connect_timeout=5,
            read_timeout=READ_TIMEOUT_S,
            max_pool_connections=2 * READ_THREADS,
        )
        client = session.client("s3", config=config)
        if re.search(r"\.amazonaws\.com(\.cn)?$", urlsplit(client.meta.endpoint_url).hostname or ""):
            return client
        # Other servers seldom have a DNS name for each bucket.
        return session.client("s3", config=config.merge(Config(s3={"addressing_style": "path"})))
    except ValueError as error:
        said = _without_secrets(str(error))
        raise StoreError(f"AWS_ENDPOINT_URL, AWS_REGION: boto3 cannot use them; it says: {said}") from None


def _parts() -> "TransferConfig":
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=4)


def _spoilt() -> tuple[type[Exception], ...]:
    """Return what a body raises that is cut off or of another checksum; boto3 retries requests, not bodies."""
    from botocore.exceptions import (
        FlexibleChecksumError,
        IncompleteReadError,
        ReadTimeoutError,
        ResponseStreamingError,
    )

    return (FlexibleChecksumError, IncompleteReadError, ReadTimeoutError, ResponseStreamingError)


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
