"""From what people have to one data set file: every picture checked before anything is written."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from uapray.data.dataset import DataSet, shared_groups
from uapray.data.dicom import SUFFIXES as DICOM_SUFFIXES
from uapray.data.dicom import from_dicom
from uapray.data.images import held_out
from uapray.data.patients import patients_of
from uapray.data.pictures import brightest_if_deep, decode, png
from uapray.data.sources import PICTURE_SUFFIXES, Picture, from_csv, from_folder, from_npz, local_path
from uapray.data.table import encode, table_of
from uapray.errors import DataError
from uapray.objects import check_uri, exists_uri, write_uri

Kind = Literal["auto", "folder", "npz", "csv", "dicom"]
_NAMED = 10  # damaged pictures that the error lists
_KEPT = (b"\x89PNG", b"\xff\xd8")  # PNG and JPEG begin like this; any other picture becomes PNG


@dataclass(frozen=True, slots=True)
class ImportSummary:
    """What an import wrote.

    Attributes:
        uri: Where.
        images: How many pictures.
        classes: Pictures of each class, in the order of the labels.
        splits: Pictures of each split.
        groups: How many patients; 0 if unknown.
        shared_groups: Patients that two splits share (a source's own splits may).
        size_bytes: Size of the file.
    """

    uri: str
    images: int
    classes: Mapping[str, int]
    splits: Mapping[str, int]
    groups: int
    shared_groups: Mapping[tuple[str, str], int]
    size_bytes: int


def import_data(
    source: str,
    destination: str,
    *,
    kind: Kind = "auto",
    test_share: float = 0.2,
    val_share: float = 0.0,
    group_pattern: str | None = None,
    class_names: Sequence[str] | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ImportSummary:
    """Write the pictures of a source as one data set file, and return what was written.

    Args:
        source: Folder of class folders (PNG, JPEG or DICOM), ``.npz`` as MedMNIST has it, or ``.csv``.
        destination: Path or URI that ends in ``.parquet``.
        kind: What the source is; ``auto`` tells by its name and content.
        test_share: Share of the patients' images for ``test``, when the source has no splits.
        val_share: Share of all images for ``val``, when the source has no such split; taken from ``train``.
        group_pattern: Regular expression; its first group, on the file name, is the patient.
        class_names: Classes in the order of their labels; sorted when None (for ``.npz``: the numbers).
        seed: Of the splits.
        overwrite: Whether a destination that exists is replaced.
        progress: Called with pictures checked and pictures in all.

    Raises:
        DataError: If the source is not as expected, or pictures are damaged (the first ten are named);
            nothing is written then.
        StoreError: If the destination cannot be written.
    """
    check_destination(destination, overwrite=overwrite)
    pictures = _find(source, kind, class_names)
    if group_pattern is not None:
        patients = patients_of([picture.id for picture in pictures], group_pattern, source)
        pictures = [replace(picture, group=patient) for picture, patient in zip(pictures, patients, strict=True)]
    _check_ids(pictures, source)
    names = _class_order(pictures, class_names, source)
    pictures = _with_splits(pictures, names, test_share, val_share, seed)
    bodies = _read_all(pictures, source, progress)
    table = table_of(
        {
            "id": [picture.id for picture in pictures],
            "image": bodies,
            "label": [names.index(picture.class_name) for picture in pictures],
            "label_name": [picture.class_name for picture in pictures],
            "split": [picture.split for picture in pictures],
            "group": [picture.group for picture in pictures],
        }
    )
    body = encode(table)
    write_uri(destination, body)
    counted = DataSet(Path(destination).stem, destination, table.drop_columns("image"), tuple(names), pictures=())
    return _summary(counted, len(body))


def check_destination(destination: str, *, overwrite: bool) -> None:
    """Refuse a destination that could not be written, before there is any work to lose.

    Raises:
        DataError: If it has another ending, or is there already.
        StoreError: If it cannot be written.
    """
    if not destination.endswith(".parquet"):
        raise DataError(f"{destination}: expected a destination that ends in .parquet")
    if not overwrite and exists_uri(destination):
        raise DataError(f"{destination}: is there already; choose another name, or --overwrite it")
    check_uri(destination)


def _find(source: str, kind: Kind, class_names: Sequence[str] | None) -> list[Picture]:
    readers: dict[str, Callable[[str], list[Picture]]] = {
        "folder": from_folder,
        "csv": from_csv,
        "dicom": from_dicom,
        "npz": partial(from_npz, class_names=class_names),
    }
    name = _kind_of(source) if kind == "auto" else kind
    if name not in readers:
        raise DataError(f"import: expected one of the kinds auto, {', '.join(readers)}, got {kind}")
    pictures = readers[name](source)
    if not pictures:
        raise DataError(f"{source}: expected pictures, got none")
    return pictures


def _kind_of(source: str) -> str:
    if source.lower().endswith((".npz", ".csv")):
        return source.lower()[-3:]
    path = local_path(source)
    if not path.is_dir():
        raise DataError(f"{source}: expected a folder of class folders, a .npz or a .csv")
    suffixes = {file.suffix.lower() for file in path.rglob("*")}
    has_dicom, has_pictures = not suffixes.isdisjoint(DICOM_SUFFIXES), not suffixes.isdisjoint(PICTURE_SUFFIXES)
    if has_dicom and has_pictures:
        raise DataError(
            f"{source}: expected pictures of one kind, got DICOM and others; say which: --kind dicom or folder"
        )
    return "dicom" if has_dicom else "folder"


def _check_ids(pictures: Sequence[Picture], source: str) -> None:
    name, times = Counter(picture.id for picture in pictures).most_common(1)[0]
    if times > 1:
        raise DataError(f"{source}: expected every picture once, got {name} {times} times")


def _class_order(pictures: Sequence[Picture], class_names: Sequence[str] | None, source: str) -> list[str]:
    found = {picture.class_name for picture in pictures}
    if len(found) < 2:
        raise DataError(f"{source}: expected two or more classes, got {', '.join(found)}")
    if class_names is None:
        numbers = all(name.isascii() and name.isdigit() for name in found)
        return sorted(found, key=int) if numbers else sorted(found)
    unknown = sorted(found - set(class_names))
    if unknown or len(set(class_names)) < len(class_names):
        came = f"also {', '.join(unknown)}" if unknown else "a name twice"
        raise DataError(f"{source}: expected the classes {', '.join(class_names)}, got {came}")
    return list(class_names)


def _with_splits(
    pictures: Sequence[Picture], names: Sequence[str], test_share: float, val_share: float, seed: int
) -> list[Picture]:
    """Keep the splits of the source, or make them by patient."""
    without = sum(picture.split is None for picture in pictures)
    if 0 < without < len(pictures):
        raise DataError(f"import: expected a split for every picture or for none, got none for {without}")
    split = list(pictures)
    if without:
        if test_share + val_share >= 1:
            raise DataError(f"import: expected test and val shares below 1 together, got {test_share}+{val_share}")
        split = [replace(picture, split="train") for picture in pictures]
        split = _moved(split, names, "test", test_share, seed)
    elif any(picture.split == "val" for picture in pictures):
        return split
    in_train = sum(picture.split == "train" for picture in split)
    return _moved(split, names, "val", val_share * len(split) / max(in_train, 1), seed + 1)


def _moved(pictures: Sequence[Picture], names: Sequence[str], to_split: str, share: float, seed: int) -> list[Picture]:
    if share == 0:
        return list(pictures)
    train = [place for place, picture in enumerate(pictures) if picture.split == "train"]
    labels = np.array([names.index(pictures[place].class_name) for place in train], dtype=np.int64)
    mask: NDArray[np.bool_] = held_out(labels, [pictures[place].group for place in train], share, seed)
    moved = {place for place, held in zip(train, mask, strict=True) if held}
    return [replace(p, split=to_split) if place in moved else p for place, p in enumerate(pictures)]


def _read_all(pictures: Sequence[Picture], source: str, progress: Callable[[int, int], None] | None) -> list[bytes]:
    """Return the pictures' bytes, each decoded once to see that it is whole."""
    bodies: list[bytes] = []
    damaged: list[str] = []
    for body in _read_in_threads(pictures):
        if isinstance(body, bytes):
            bodies.append(body)
        else:
            damaged.append(body)
        if progress is not None:
            progress(len(bodies) + len(damaged), len(pictures))
    if damaged:
        more = f"\n… and {len(damaged) - _NAMED} more" if len(damaged) > _NAMED else ""
        raise DataError(
            f"{source}: {len(damaged)} of {len(pictures)} pictures cannot be used; nothing was written:\n"
            + "\n".join(damaged[:_NAMED])
            + more
        )
    return _of_one_depth(bodies, [picture.id for picture in pictures])


def _of_one_depth(bodies: Sequence[bytes], names: Sequence[str]) -> list[bytes]:
    """Bring deep pictures to 8 bits by the brightest pixel of all, so that equal values stay equal."""
    peaks = [brightest_if_deep(body) for body in bodies]
    deep = [peak for peak in peaks if peak is not None]
    return [
        body if peak is None else png(np.asarray(decode(body, name, max(deep))))
        for body, name, peak in zip(bodies, names, peaks, strict=True)
    ]


def _read_in_threads(pictures: Sequence[Picture]) -> Iterator[bytes | str]:
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        yield from pool.map(_read_one, pictures)


def _read_one(picture: Picture) -> bytes | str:
    """Return the picture, or what is wrong with it."""
    try:
        body = picture.read()
        decoded = decode(body, picture.id)
        keep = body.startswith(_KEPT) or brightest_if_deep(body) is not None
        return body if keep else png(np.asarray(decoded))
    except DataError as error:
        return str(error) if str(error).startswith(picture.id) else f"{picture.id}: {error}"
    except OSError as error:
        return f"{picture.id}: {error.strerror or error}"


def _summary(dataset: DataSet, size_bytes: int) -> ImportSummary:
    labels = Counter(dataset.table["label"].to_pylist())
    splits = Counter(dataset.table["split"].to_pylist())
    return ImportSummary(
        uri=dataset.uri,
        images=dataset.table.num_rows,
        classes={name: labels[label] for label, name in enumerate(dataset.class_names)},
        splits={name: splits[name] for name in dataset.splits()},
        groups=len(set(dataset.table["group"].to_pylist()) - {None}),
        shared_groups=shared_groups(dataset),
        size_bytes=size_bytes,
    )
