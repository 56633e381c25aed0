"""Named byte strings below one URI: a local folder or an S3 bucket with a prefix."""

import fnmatch
import glob
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote

from uapray.errors import NotFoundError, StoreError
from uapray.objects.local import LocalObjects, os_errors
from uapray.objects.pieces import Pieces
from uapray.objects.protocol import READ_THREADS, Objects, keeps_first
from uapray.objects.s3 import S3Objects

__all__ = [
    "READ_THREADS",
    "LocalObjects",
    "Objects",
    "Pieces",
    "S3Objects",
    "check_uri",
    "exists_uri",
    "expand_uri",
    "keeps_first",
    "open_objects",
    "open_uri",
    "read_all",
    "read_uri",
    "write_uri",
    "write_uri_once",
]


def open_objects(uri: str) -> LocalObjects | S3Objects:
    """Return the objects below a path, ``file://…`` or ``s3://bucket/prefix``; touches nothing.

    Raises:
        StoreError: If the URI has another scheme, or no bucket.
    """
    scheme, found, rest = uri.partition("://")
    if not found:
        return LocalObjects(_absolute(uri))
    if scheme == "file":
        if not rest.removeprefix("localhost").startswith("/"):
            raise StoreError(f"{uri}: expected file:// and an absolute path (file:///…)")
        return LocalObjects(_absolute(unquote(rest.removeprefix("localhost"))))
    if scheme != "s3":
        raise StoreError(f"{uri}: expected a path, file://… or s3://bucket/prefix, got {scheme}://")
    bucket, _, prefix = rest.partition("/")
    if not bucket:
        raise StoreError(f"{uri}: expected s3://bucket/prefix, got no bucket")
    return S3Objects(bucket, prefix.strip("/"))


def read_uri(uri: str) -> bytes:
    """Return the bytes of one file or object; `NotFoundError` if there is none."""
    objects, key = _parent(uri)
    return objects.read(key)


def open_uri(uri: str) -> BinaryIO | Pieces:
    """Open one file or object to be read in pieces; `NotFoundError` if there is none."""
    objects, key = _parent(uri)
    return objects.open(key)


def write_uri(uri: str, body: bytes) -> None:
    """Write one file or object, whole or not at all; missing folders are made."""
    objects, key = _parent(uri)
    objects.write(key, body)


def write_uri_once(uri: str, body: bytes) -> bool:
    """Write one file or object if none is there; return whether ``body`` stands there now (`Objects.write_once`)."""
    objects, key = _parent(uri)
    return objects.write_once(key, body)


def check_uri(uri: str) -> None:
    """Find out that a file or object could be written there, without making it or a folder for it.

    Raises:
        StoreError: It says what stands in the way.
    """
    objects, _ = _parent(uri)
    if isinstance(objects, LocalObjects):
        with os_errors(objects.folder):
            standing = next(place for place in (objects.folder, *objects.folder.parents) if place.exists())
        objects = LocalObjects(standing)
    objects.check()


def exists_uri(uri: str) -> bool:
    """Whether one file or object is there (a folder is none)."""
    objects, key = _parent(uri)
    return objects.exists(key)


def expand_uri(uri: str) -> list[str]:
    """Return the files that a URI means, sorted.

    One file means itself; a folder its ``*.parquet``; ``*``, ``?`` and ``[…]`` match within one level.

    Raises:
        NotFoundError: If it means no file at all.
    """
    place = open_objects(uri)
    found = _expand_folder(place) if isinstance(place, LocalObjects) else _expand_prefix(place)
    if not found:
        raise NotFoundError(f"{uri}: expected a file, a folder with *.parquet or a pattern that matches, found none")
    return found


def read_all(objects: Objects, keys: Sequence[str]) -> list[bytes]:
    """Read many objects at once, `READ_THREADS` at a time; bodies in the order of ``keys``."""
    with ThreadPoolExecutor(min(READ_THREADS, max(1, len(keys)))) as threads:
        return list(threads.map(objects.read, keys))


def _absolute(path: str) -> Path:
    return Path(os.path.abspath(os.path.expanduser(path)))


def _parent(uri: str) -> tuple[LocalObjects | S3Objects, str]:
    """Split the URI of one object into the objects around it and its key."""
    place = open_objects(uri)
    if isinstance(place, LocalObjects):
        return LocalObjects(place.folder.parent), place.folder.name
    prefix, _, key = place.prefix.rpartition("/")
    if not key:
        raise StoreError(f"{uri}: expected s3://bucket/key, got no key")
    return S3Objects(place.bucket, prefix), key


def _expand_folder(place: LocalObjects) -> list[str]:
    with os_errors(place.folder):
        if place.folder.is_file():
            return [place.uri]
        if place.folder.is_dir():
            return sorted(str(path) for path in place.folder.glob("*.parquet") if path.is_file())
        return sorted(path for path in glob.glob(place.uri) if os.path.isfile(path))


def _expand_prefix(place: S3Objects) -> list[str]:
    bucket = S3Objects(place.bucket)
    if place.prefix and bucket.exists(place.prefix):
        return [place.uri]
    pattern = place.prefix.split("/")
    if not glob.has_magic(place.prefix):
        pattern = [glob.escape(part) for part in pattern if part] + ["*.parquet"]
    literal = re.split(r"[*?[]", place.prefix)[0]
    return [
        f"{bucket.uri}/{key}"
        for key in bucket.keys(literal)
        if key.count("/") == len(pattern) - 1 and all(map(fnmatch.fnmatchcase, key.split("/"), pattern))
    ]
