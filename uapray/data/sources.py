"""Pictures as people have them: class folders, MedMNIST arrays, lists of paths and labels."""

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from uapray.data.pictures import png
from uapray.data.table import MOST_CLASSES
from uapray.errors import DataError
from uapray.objects import read_uri

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
_SPLITS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "val",
    "valid": "val",
    "validation": "val",
}
_COLUMNS = {
    "path": ("path", "filename", "file", "image"),
    "label": ("label", "label_name", "class"),
    "split": ("split",),
    "group": ("group", "patient", "patient_id", "lesion_id"),
}


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that a source names; nothing of it has been read yet."""

    id: str
    class_name: str
    split: str | None
    group: str | None
    read: Callable[[], bytes]  # the encoded picture; OSError or DataError


def from_folder(source: str) -> list[Picture]:
    """Return the pictures of ``source/CLASS/…`` or ``source/SPLIT/CLASS/…``, at any depth below the class.

    Raises:
        DataError: If there are none.
    """
    return [
        Picture(name, class_name, split, None, path.read_bytes)
        for path, name, class_name, split in classified_files(source, PICTURE_SUFFIXES)
    ]


def classified_files(source: str, suffixes: Sequence[str]) -> Iterator[tuple[Path, str, str, str | None]]:
    """Yield path, relative name, class and split of the files in class folders, sorted.

    Raises:
        DataError: If there are none.
    """
    root = local_path(source)
    top = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))
    of_splits = [path.name for path in top if path.name.lower() in _SPLITS]
    has_splits = len(of_splits) == len(top) > 0
    if of_splits and not has_splits:
        others = ", ".join(path.name for path in top if path.name not in of_splits)
        raise DataError(
            f"{source}: expected splits alone or classes alone, got {', '.join(of_splits)} beside {others}; "
            "move the one or the other away"
        )
    depth = 2 if has_splits else 1
    found = False
    for path in sorted(path for folder in top for path in folder.rglob("*")):
        parts = path.relative_to(root).parts
        hidden = any(part.startswith((".", "__")) for part in parts)  # e.g. .ipynb_checkpoints, full of copies
        if path.suffix.lower() in suffixes and len(parts) > depth and not hidden:
            found = True
            yield path, "/".join(parts), parts[depth - 1], _SPLITS[parts[0].lower()] if has_splits else None
    if not found:
        kinds = ", ".join(f"*{suffix}" for suffix in suffixes)
        raise DataError(f"{source}: expected {kinds} in CLASS/ or SPLIT/CLASS/ folders, found none")


def from_csv(source: str) -> list[Picture]:
    """Return the pictures of a CSV with columns path, label and, if it has them, split and group.

    Paths are relative to the CSV. Without a header it has two columns: path, label.

    Raises:
        DataError: If it is no such CSV.
    """
    path = local_path(source)
    try:
        lines = [line for line in csv.reader(io.StringIO(path.read_text("utf-8-sig"), newline="")) if any(line)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{source}: expected a CSV in UTF-8, got {error}") from error
    if not lines:
        raise DataError(f"{source}: expected rows of path,label, got an empty file")
    places, first = _header(lines[0])
    if places is None:
        if len(lines[0]) != 2:
            came = ",".join(lines[0])[:80]
            raise DataError(f"{source}: expected a header path,label[,split][,group] or two columns, got {came}")
        places = {"path": 0, "label": 1}
    pictures = []
    for number, line in enumerate(lines[first:], first + 1):
        if len(line) <= max(places.values()):
            raise DataError(f"{source}: expected {len(lines[0])} columns in row {number}, got {len(line)}")
        cells = {column: line[place].strip() for column, place in places.items()}
        if not cells["path"] or not cells["label"]:
            raise DataError(f"{source}: expected a path and a label in row {number}, got {','.join(line)}")
        split = split_name(cells["split"], f"{source}: row {number}") if cells.get("split") else None
        file = path.parent / cells["path"]
        pictures.append(Picture(cells["path"], cells["label"], split, cells.get("group") or None, file.read_bytes))
    return pictures


def from_npz(source: str, class_names: Sequence[str] | None = None) -> list[Picture]:
    """Return the pictures of MedMNIST arrays: ``train_images``, ``train_labels``, ``val_…``, ``test_…``.

    Args:
        source: Path or URI of the ``.npz``.
        class_names: Name of each label; the numbers themselves when None.

    Raises:
        DataError: If it is no such file, has several labels an image, or volumes instead of pictures.
    """
    name = Path(source).stem
    try:
        arrays = dict(np.load(io.BytesIO(read_uri(source)), allow_pickle=False))
    except (ValueError, OSError, EOFError, KeyError) as error:
        raise DataError(f"{source}: expected a .npz of plain arrays, got {error}") from error
    except Exception as error:  # zipfile and zlib have their own
        raise DataError(f"{source}: expected a whole .npz, got {type(error).__name__}: {error}") from error
    splits = [split for split in ("train", "val", "test") if f"{split}_images" in arrays]
    if not splits:
        came = ", ".join(sorted(arrays)) or "nothing"
        raise DataError(f"{source}: expected train_images, train_labels, val_…, test_…, got {came}")
    pictures = []
    for split in splits:
        images, labels = _checked_arrays(arrays, split, source)
        low, top = int(labels.min(initial=0)), int(labels.max(initial=0))
        most = (MOST_CLASSES if class_names is None else len(class_names)) - 1
        if low < 0 or top > most:
            raise DataError(f"{source}: expected {split}_labels from 0 to {most}, got {low} to {top}")
        names = [str(label) for label in range(top + 1)] if class_names is None else class_names
        pictures += [
            Picture(f"{name}-{split}-{row:06d}", names[int(label)], split, None, partial(png, images[row]))
            for row, label in enumerate(labels)
        ]
    return pictures


def split_name(text: str, where: str) -> str:
    """Return ``train``, ``val`` or ``test`` for the names people give them.

    Raises:
        DataError: If it is none of them.
    """
    try:
        return _SPLITS[text.lower()]
    except KeyError:
        raise DataError(f"{where}: expected split train, val or test, got {text}") from None


def local_path(source: str) -> Path:
    """Return the local path that a source names.

    Raises:
        DataError: If it is not there, or not local.
    """
    path = Path(source.removeprefix("file://"))
    if "://" in source.removeprefix("file://") or not path.exists():
        raise DataError(f"{source}: expected a local file or folder to import, found none")
    return path


def _header(line: Sequence[str]) -> tuple[dict[str, int] | None, int]:
    """Return the place of each column and the number of header lines; None, 0 when there is no header."""
    names = [cell.strip().lower() for cell in line]
    places = {
        column: names.index(alias)
        for column, aliases in _COLUMNS.items()
        for alias in reversed(aliases)
        if alias in names
    }
    return (places, 1) if {"path", "label"} <= places.keys() else (None, 0)


def _checked_arrays(arrays: dict[str, Any], split: str, source: str) -> tuple[Any, Any]:
    images, labels = arrays[f"{split}_images"], arrays.get(f"{split}_labels")
    if labels is None or images.ndim == 0 or labels.ndim == 0 or len(labels) != len(images):
        raise DataError(f"{source}: expected {split}_labels, one for each of {len(images)} {split}_images")
    if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3))):
        came = f"{images.dtype} {images.shape}"
        raise DataError(f"{source}: expected {split}_images uint8 (n, h, w) or (n, h, w, 3), got {came}")
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{source}: expected {split}_labels of whole numbers, got {labels.dtype}")
    if labels.ndim > 2 or (labels.ndim == 2 and labels.shape[1] != 1):
        raise DataError(
            f"{source}: expected one label an image, got {labels.shape[1]} (multi-label); "
            "choose a set with one class an image"
        )
    if images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]
    return images, labels.reshape(-1).astype(np.int64)
