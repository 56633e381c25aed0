"""Objects of an S3 bucket below a prefix; the only importer of boto3."""

import functools
import io
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar
from urllib.parse import urlsplit

from uapray.errors import NotFoundError, StoreError
from uapray.objects.pieces import Pieces
from uapray.objects.protocol import READ_THREADS, is_reserved, round_trip, valid_key

if TYPE_CHECKING:
    from boto3.s3.transfer import TransferConfig
    from botocore.exceptions import BotoCoreError, ClientError
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import HeadObjectOutputTypeDef

PART_BYTES = 16 * 2**20
READ_TIMEOUT_S = 30
_PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0)  # after boto3's own three attempts, each
T = TypeVar("T")
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

    def open(self, key: str) -> Pieces:
        """Open the object to be read in pieces, all of one version; `NotFoundError` if there is none."""
        head = self._head(key)
        version = head["ETag"]

        def read(place: int, size: int) -> bytes:
            return self._read(key, Range=f"bytes={place}-{place + size - 1}", IfMatch=version)

        return Pieces(head["ContentLength"], read)

    def write(self, key: str, body: bytes) -> None:
        """See `Objects.write`; a large one goes in parts, which become an object at the end."""
        name = self._name(key)

        def put(client: "S3Client") -> None:
            if len(body) <= PART_BYTES:
                client.put_object(Bucket=self.bucket, Key=name, Body=body)
            else:
                client.upload_fileobj(io.BytesIO(body), self.bucket, name, Config=_parts())

        self._ask(key, put)

    def write_once(self, key: str, body: bytes) -> bool:
        """See `Objects.write_once`; one conditional PUT of whatever size, for parts carry no condition everywhere.

        An answer that is lost makes us ask again, and then our own object is in the way: so bytes are compared.
        """
        name = self._name(key)
        match self._ask(key, lambda client: _put_once(client, self.bucket, name, body)):
            case "stands":
                try:
                    return self.read(key) == body
                except NotFoundError:  # deleted just now
                    return self.write_once(key, body)
            case "no conditions":
                self.write(key, body)
        return True

    def keys(self, prefix: str = "") -> list[str]:
        """See `Objects.keys`."""
        base = self._base()

        def listed(client: "S3Client") -> list[str]:
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=base + prefix)
            return [item["Key"].removeprefix(base) for page in pages for item in page.get("Contents", [])]

        # A console leaves "folder/" objects behind; they are no byte strings of ours.
        return sorted(key for key in self._ask(prefix, listed) if not key.endswith("/") and not is_reserved(key))

    def exists(self, key: str) -> bool:
        """See `Objects.exists`."""
        try:
            self._head(key)
        except NotFoundError:
            return False
        return True

    def delete(self, key: str) -> None:
        """See `Objects.delete`."""
        name = self._name(key)
        self._ask(key, lambda client: client.delete_object(Bucket=self.bucket, Key=name))

    def check(self) -> None:
        """See `Objects.check`; some servers make a missing bucket at the first write."""
        self._find_bucket()
        round_trip(self)

    def _head(self, key: str) -> "HeadObjectOutputTypeDef":
        name = self._name(key)
        try:
            return self._ask(key, lambda client: client.head_object(Bucket=self.bucket, Key=name))
        except NotFoundError:
            self._find_bucket()  # HEAD has no body to tell a missing bucket from a missing object
            raise

    def _find_bucket(self) -> None:
        self._ask("", lambda client: client.list_objects_v2(Bucket=self.bucket, Prefix=self._base(), MaxKeys=1))

    def _read(self, key: str, **part: str) -> bytes:
        name = self._name(key)
        return self._ask(key, lambda client: _body(client, self.bucket, name, part))

    def _base(self) -> str:
        return f"{self.prefix}/" if self.prefix else ""

    def _name(self, key: str) -> str:
        return self._base() + valid_key(key)

    def _ask(self, key: str, act: Callable[["S3Client"], T]) -> T:
        """Do something with the client; what is likely to pass is tried again.

        boto3 does so too, but not for bodies, and it soon stops when many requests fail at once.
        """
        from botocore.exceptions import BotoCoreError, ClientError

        where = self.uri if is_reserved(key) or not key else f"{self.uri}/{key}"
        # "from None": what boto3 raises may quote a header, and so a session token.
        try:
            for pause in _pauses_s(_client()):
                try:
                    return act(_client())
                except (BotoCoreError, ClientError) as error:
                    if not _passes(error):
                        raise
                time.sleep(pause)
            return act(_client())
        except ClientError as error:
            raise _refusal(error, where, self.bucket) from None
        except BotoCoreError as error:
            raise _no_answer(error, where) from None


def _body(client: "S3Client", bucket: str, name: str, part: Mapping[str, str]) -> bytes:
    from botocore.exceptions import ClientError

    try:
        return client.get_object(Bucket=bucket, Key=name, **part)["Body"].read()  # type: ignore[arg-type]
    except ClientError as error:
        if _status(error) == 416:  # an empty object has no end
            return b""
        raise


def _put_once(client: "S3Client", bucket: str, name: str, body: bytes) -> Literal["put", "stands", "no conditions"]:
    from botocore.exceptions import ClientError

    try:
        client.put_object(Bucket=bucket, Key=name, Body=body, IfNoneMatch="*")
    except ClientError as error:
        if _status(error) == 412:
            return "stands"
        if _status(error) == 501:
            return "no conditions"
        raise
    return "put"


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
    from botocore.config import Config

    try:
        session = boto3.session.Session()
        config = Config(
            retries={"mode": "standard"},
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


def _pauses_s(client: "S3Client") -> tuple[float, ...]:
    """Return how long to wait between attempts; none if the user said how many are to be made."""
    retries = getattr(client.meta.config, "retries", None) or {}
    return () if "total_max_attempts" in retries else _PAUSES_S


def _passes(error: "BotoCoreError | ClientError") -> bool:
    """Whether what was raised is likely to pass: an outage, a wish for less, a body that is cut off or damaged."""
    from botocore import exceptions

    if isinstance(error, exceptions.ClientError):  # 409: AWS says so where somebody else is just writing or deleting it
        return _status(error) in (409, 429) or (_status(error) >= 500 and _status(error) != 501)
    return isinstance(
        error,
        exceptions.ConnectionError
        | exceptions.ReadTimeoutError
        | exceptions.ConnectionClosedError
        | exceptions.FlexibleChecksumError
        | exceptions.IncompleteReadError
        | exceptions.ResponseStreamingError,
    )


def _status(error: "ClientError") -> int:
    return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)


def _endpoint() -> str:
    """Return the endpoint for people: without a user and password that its URL may hold."""
    parts = urlsplit(_client().meta.endpoint_url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _refusal(error: "ClientError", where: str, bucket: str) -> StoreError:
    """Say what a server's refusal means."""
    code = str(error.response.get("Error", {}).get("Code", "no code"))
    said = _without_secrets(str(error.response.get("Error", {}).get("Message", "")))
    status = _status(error)
    if code == "NoSuchBucket":
        return StoreError(f"{where}: no bucket {bucket!r} at {_endpoint()}; create it or correct the URI")
    if status == 404 and error.operation_name in ("GetObject", "HeadObject"):
        return NotFoundError(f"{where}: no such object")
    if status == 412 and error.operation_name == "GetObject":
        return StoreError(f"{where}: expected the object that was opened, got another; start again")
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
        case exceptions.ConnectionError() | exceptions.ConnectionClosedError() | exceptions.ReadTimeoutError():
            return StoreError(f"{where}: no answer; check AWS_ENDPOINT_URL and the network\nboto3 says: {said}")
    return StoreError(f"{where}: boto3 cannot ask for it: {said}")


def _without_secrets(text: str) -> str:
    """Blank out the credentials that a quoted URL or message may hold."""
    text = re.sub(r"\S+@", "…@", text)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN"):
        if secret := os.environ.get(name, "").strip():
            text = text.replace(secret, "…")
    return text
