"""Public data sets by name: downloaded once, checked, and written as a data set file."""

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache as once
from importlib import resources
from pathlib import Path
from typing import Any

import requests
import tenacity

from uapray.data.imports import check_destination, import_data
from uapray.errors import DataError

Progress = Callable[[int, int], None]
SIZES = (28, 64, 128, 224)
_ATTEMPTS = 6
_TIMEOUT_S = (10, 60)  # to connect, and between two pieces
_PIECE_BYTES = 1 << 18


class _Interrupted(Exception):  # noqa: N818 (never leaves this module)
    """The connection failed or ended early; what came so far is kept, and another attempt may go on."""


@dataclass(frozen=True, slots=True)
class Download:
    """One file to download."""

    url: str
    md5: str
    path: Path  # where it will stand, whole and checked


def set_names() -> tuple[str, ...]:
    """Return the names of the sets that `fetch` knows."""
    return tuple(_facts()["sets"])


def fetch(
    name: str,
    destination: str | None,
    *,
    size: int = 28,
    base_url: str | None = None,
    cache: Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> str:
    """Download a MedMNIST set and return the URI of its data set file.

    Source: Yang et al. 2023, MedMNIST v2; file names and checksums in ``medmnist.json``.

    Args:
        name: For example ``pneumoniamnist``; see `set_names`.
        destination: Path or URI that ends in ``.parquet``; None writes it once into the cache.
        size: Height and width in pixels: 28, 64, 128 or 224.
        base_url: Folder URL of a mirror; the public record when None.
        cache: Folder for downloads; None means ``UAPRAY_CACHE``, else uapray's part of the user's cache.
        overwrite: Whether a destination that exists is replaced.
        progress: Called with bytes here and bytes in all.

    Raises:
        DataError: If name or size is unknown, several labels an image, or the download fails or is wrong.
    """
    facts = _facts_of(name, size)
    folder = _cache_folder() if cache is None else cache
    file = facts["files"][str(size)]
    kept = folder / file["file"].replace(".npz", ".parquet")
    if destination is None and kept.exists() and not overwrite:
        return str(kept)
    target = destination or str(kept)
    check_destination(target, overwrite=overwrite)
    url = f"{(base_url or _facts()['base_url']).rstrip('/')}/{file['file']}"
    npz = download(Download(url, file["md5"], folder / file["file"]), progress)
    summary = import_data(str(npz), target, kind="npz", class_names=facts["labels"], overwrite=overwrite)
    return summary.uri


def download(file: Download, progress: Progress | None = None) -> Path:
    """Return the file's path, downloaded if need be: into ``….part`` beside it, going on where that ended.

    Raises:
        DataError: If the server has no such file, stays out of reach, or sends other bytes than expected.
    """
    if file.path.exists() and _md5(file.path) == file.md5:
        return file.path
    try:
        file.path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{file.path.parent}: expected a folder for downloads ({error.strerror}); name one in UAPRAY_CACHE"
        ) from error
    part = file.path.with_name(file.path.name + ".part")
    resumed = part.exists()
    _complete(file.url, part, progress)
    if resumed and _md5(part) != file.md5:  # the part may have been of another version: once more from the start
        part.unlink()
        _complete(file.url, part, progress)
    if (md5 := _md5(part)) != file.md5:
        part.unlink()
        raise DataError(f"{file.url}: expected md5 {file.md5}, got {md5}; removed. Try again or another mirror")
    part.replace(file.path)
    return file.path


def _complete(url: str, part: Path, progress: Progress | None) -> None:
    attempts = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(_Interrupted),
        stop=tenacity.stop_after_attempt(_ATTEMPTS),
        wait=tenacity.wait_exponential(multiplier=0.25, max=20),
        reraise=True,
    )
    while True:  # as long as the attempts bring something
        here = _size(part)
        try:
            attempts(_append, url, part, progress)
        except _Interrupted as error:
            if _size(part) <= here:
                raise DataError(
                    f"{url}: {_ATTEMPTS} attempts failed, the last one because {error}; "
                    f"{here} bytes are kept, repeat to go on"
                ) from error
        else:
            return


def _append(url: str, part: Path, progress: Progress | None) -> None:
    """Append to ``part`` what is missing, or all of it if the server cannot continue."""
    here = _size(part)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={here}-"} if here else {})
    try:
        with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT_S) as answer:
            if answer.status_code == requests.codes.requested_range_not_satisfiable:
                if _total(answer) != here:
                    part.unlink()
                    raise _Interrupted("the part kept was longer than the file")
                return
            _check_status(answer, url)
            start = here if answer.status_code == requests.codes.partial_content else 0
            total = _total(answer)
            with part.open("ab" if start else "wb") as body:
                for piece in answer.iter_content(_PIECE_BYTES):
                    body.write(piece)
                    start += len(piece)
                    if progress is not None:
                        progress(start, total if total is not None else start)
    except requests.RequestException as error:
        if isinstance(error, ValueError):  # no such scheme, no host
            raise DataError(f"{url}: expected a URL of a file, got one that makes no sense: {error}") from error
        raise _Interrupted(_reason(error)) from error
    except OSError as error:
        raise DataError(f"{part}: cannot be written: {error.strerror or error}") from error
    if total is not None and start != total:
        raise _Interrupted(f"{start} of {total} bytes came")


def _check_status(answer: requests.Response, url: str) -> None:
    code = answer.status_code
    if code >= 500 or code in (requests.codes.too_many_requests, requests.codes.request_timeout):
        raise _Interrupted(f"of HTTP {code} {answer.reason}")
    if code not in (requests.codes.ok, requests.codes.partial_content):
        raise DataError(f"{url}: expected the file, got HTTP {code} {answer.reason}")


def _total(answer: requests.Response) -> int | None:
    """Return the size of the whole file, from Content-Range or Content-Length."""
    if match := re.fullmatch(r"bytes .*/(\d+)", answer.headers.get("Content-Range", "")):
        return int(match[1])
    length = answer.headers.get("Content-Length", "")
    return int(length) if length.isdigit() and answer.status_code == requests.codes.ok else None


def _reason(error: requests.RequestException) -> str:
    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy cannot be reached or refused"
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.exceptions.SSLError):
        return "the certificate cannot be verified"
    return "the connection failed or was cut"


def _facts_of(name: str, size: int) -> dict[str, Any]:
    sets: dict[str, dict[str, Any]] = _facts()["sets"]
    if name not in sets:
        near = get_close_matches(name.lower(), sets, n=1, cutoff=0.0)[0]
        raise DataError(f"{name}: expected the name of a public set; did you mean {near}? ({', '.join(sets)})")
    if size not in SIZES:
        raise DataError(f"{name}: expected size {', '.join(map(str, SIZES))}, got {size}")
    if sets[name]["task"].startswith("multi-label"):
        count = len(sets[name]["labels"])
        raise DataError(f"{name}: has {count} labels an image (multi-label); choose a set with one class an image")
    return sets[name]


@once
def _facts() -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(resources.files("uapray.data").joinpath("medmnist.json").read_text("utf-8"))
    return facts


def _cache_folder() -> Path:
    if own := os.environ.get("UAPRAY_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "uapray"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _md5(path: Path) -> str:
    with path.open("rb") as body:
        return hashlib.file_digest(body, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
