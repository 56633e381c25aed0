"""What every store of objects can do, and which names it takes."""

import uuid
from typing import Protocol

from uapray.errors import StoreError

RESERVED = ".uapray-"  # temporary files and probes: never listed
READ_THREADS = 16


class Objects(Protocol):
    """A flat space of named byte strings below one URI; every failure is a `StoreError`."""

    @property
    def uri(self) -> str:
        """Where the objects are: an absolute path or ``s3://bucket/prefix``."""
        ...

    def read(self, key: str) -> bytes:
        """Return the whole object; `NotFoundError` if there is none."""
        ...

    def write(self, key: str, body: bytes) -> None:
        """Put the object, whole or not at all; an older one of that name is replaced."""
        ...

    def write_once(self, key: str, body: bytes) -> bool:
        """Put the object, whole or not at all, if none of that name is there.

        Returns:
            Whether ``body`` stands there now: put by this call, or before it by one with the same bytes. A store
            that cannot tell (`keeps_first` finds out) puts it in any case, and the last one stays.
        """
        ...

    def read_end(self, key: str, size: int) -> bytes:
        """Return the last ``size`` bytes of the object, or all of a shorter one; `NotFoundError` if there is none."""
        ...

    def keys(self, prefix: str = "") -> list[str]:
        """Return the keys that begin with ``prefix``, relative to ``uri``, sorted, at any depth."""
        ...

    def exists(self, key: str) -> bool:
        """Whether the object is there."""
        ...

    def delete(self, key: str) -> None:
        """Remove the object; none there is fine."""
        ...

    def check(self) -> None:
        """Write, read and delete a probe; `StoreError` says what stands in the way."""
        ...


def round_trip(objects: Objects) -> None:
    """Write, read and delete a probe under a name that no listing shows."""
    key, body = f"{RESERVED}probe-{uuid.uuid4().hex}", uuid.uuid4().bytes
    objects.write(key, body)
    try:
        came = objects.read(key)
    finally:
        objects.delete(key)
    if came != body:
        raise StoreError(
            f"{objects.uri}: wrote {len(body)} bytes and read {len(came)} others back; "
            "an old S3 server may need AWS_REQUEST_CHECKSUM_CALCULATION=WHEN_REQUIRED"
        )


def keeps_first(objects: Objects) -> bool:
    """Find out whether the second of two that write an object once is refused."""
    key = f"{RESERVED}probe-{uuid.uuid4().hex}"
    try:
        return objects.write_once(key, b"first") and not objects.write_once(key, b"second")
    finally:
        objects.delete(key)


def valid_key(key: str) -> str:
    """Return the key if every store can hold it as it is.

    Empty, ``.`` and ``..`` parts mean a place elsewhere; SeaweedFS makes a slash of a backslash.
    """
    if any(part in ("", ".", "..") for part in key.split("/")) or "\\" in key or not key.isprintable():
        raise StoreError(f"key {key!r}: expected printable names joined by '/', none of them '', '.' or '..'")
    return key


def is_reserved(key: str) -> bool:
    """Whether the key names a temporary file or a probe."""
    return key.rpartition("/")[2].startswith(RESERVED)
