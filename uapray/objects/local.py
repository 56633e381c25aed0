"""Objects as files below a local folder."""

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from uapray.errors import NotFoundError, StoreError
from uapray.objects.protocol import RESERVED, is_reserved, round_trip, valid_key

MIN_FREE_BYTES = 64 * 2**20
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}  # a disk that has no hard links


@dataclass(frozen=True, slots=True)
class LocalObjects:
    """Files below one folder; the folder is made by the first write."""

    folder: Path

    @property
    def uri(self) -> str:
        """The folder's path."""
        return str(self.folder)

    def read(self, key: str) -> bytes:
        """See `Objects.read`."""
        path = self._path(key)
        with os_errors(path):
            try:
                return path.read_bytes()
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                raise NotFoundError(f"{path}: no such file") from None

    def read_end(self, key: str, size: int) -> bytes:
        """See `Objects.read_end`."""
        path = self._path(key)
        with os_errors(path):
            try:
                with open(path, "rb") as file:
                    file.seek(max(0, file.seek(0, os.SEEK_END) - size))
                    return file.read(size)
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                raise NotFoundError(f"{path}: no such file") from None

    def open(self, key: str) -> BinaryIO:
        """Open the file to be read in pieces; `NotFoundError` if there is none."""
        path = self._path(key)
        with os_errors(path):
            try:
                return open(path, "rb")
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                raise NotFoundError(f"{path}: no such file") from None

    def write(self, key: str, body: bytes) -> None:
        """See `Objects.write`; written beside, synced, then renamed, so that a reader never sees a half."""
        path = self._path(key)
        with os_errors(path), _draft(path, body) as draft:
            os.replace(draft, path)

    def write_once(self, key: str, body: bytes) -> bool:
        """See `Objects.write_once`; written beside, synced, then linked, which fails where a file is."""
        path = self._path(key)
        with os_errors(path), _draft(path, body) as draft:
            try:
                os.link(draft, path)
            except FileExistsError:
                try:
                    return path.read_bytes() == body
                except FileNotFoundError:  # deleted just now
                    return self.write_once(key, body)
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                os.replace(draft, path)
            return True

    def keys(self, prefix: str = "") -> list[str]:
        """See `Objects.keys`."""
        inner = prefix.rpartition("/")[0]
        top = self._path(inner) if inner else self.folder
        with os_errors(top):
            if self.folder.is_file():
                raise NotADirectoryError(errno.ENOTDIR, "", self.uri)
            found = [
                Path(base, name).relative_to(self.folder).as_posix()
                for base, _, names in os.walk(top, onerror=_unlistable)
                for name in names
            ]
        return sorted(key for key in found if key.startswith(prefix) and not is_reserved(key))

    def exists(self, key: str) -> bool:
        """See `Objects.exists`."""
        path = self._path(key)
        with os_errors(path):
            return path.is_file()

    def delete(self, key: str) -> None:
        """See `Objects.delete`."""
        path = self._path(key)
        with os_errors(path):
            if path.is_file():
                path.unlink(missing_ok=True)

    def check(self) -> None:
        """See `Objects.check`; also wants `MIN_FREE_BYTES` free."""
        with os_errors(self.folder):
            standing = next(place for place in (self.folder, *self.folder.parents) if place.exists())
            if not standing.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, "", str(standing))
            free = shutil.disk_usage(standing).free
        if free < MIN_FREE_BYTES:
            wanted = f"expected at least {MIN_FREE_BYTES >> 20} MiB free, found {free >> 20} MiB"
            raise StoreError(f"{self.folder}: {wanted}; make room or name another place")
        round_trip(self)

    def _path(self, key: str) -> Path:
        return self.folder / valid_key(key)


@contextmanager
def _draft(path: Path, body: bytes) -> Iterator[Path]:
    """Write and sync a file beside ``path``, under a name that no listing shows; it is gone afterwards."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{RESERVED}{uuid.uuid4().hex}")
    try:
        with open(draft, "xb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        yield draft
    finally:
        draft.unlink(missing_ok=True)


def _unlistable(error: OSError) -> None:
    """Let a folder that is not there be empty, and nothing else."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


@contextmanager
def os_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system says into one line for people."""
    try:
        yield
    except OSError as error:
        place = error.filename or path
        advice = {
            errno.ENOSPC: "no room left; make room or name another place",
            errno.EDQUOT: "the quota is used up; make room or name another place",
            errno.EACCES: "not permitted; change the rights or name another place",
            errno.EPERM: "not permitted; change the rights or name another place",
            errno.EROFS: "the disk is read-only; name another place",
            errno.ENOTDIR: "expected a folder, found a file; name another place",
            errno.EEXIST: "expected a folder, found a file; name another place",
            errno.EISDIR: "expected a file, found a folder; name another place",
        }.get(error.errno or 0, error.strerror or type(error).__name__)
        raise StoreError(f"{place}: {advice}") from error
