"""A data set by URI: pictures still encoded, decoded split by split when they are needed."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray
from PIL import Image

from uapray.data import phantoms
from uapray.data.images import ImageSet, held_out
from uapray.data.pictures import decode, is_grey
from uapray.data.table import class_names_of, read_data_files
from uapray.errors import DataError

ATTACKER = "attacker"
_SPLIT_ORDER = ("train", "val", "test")
_CHUNK = 32  # pictures a thread takes at a time
_DECODERS = 8


@dataclass(frozen=True, eq=False)
class DataSet:
    """A table of encoded pictures with their labels, splits and patients.

    Attributes:
        name: Name of the data set, made from its file names.
        uri: Where it came from, as it was asked for.
        table: pyarrow table; its columns are described in docs/data.md.
        class_names: Names of the classes, in the order of their labels.
        like: Data set whose channels the images are brought to; None: their own.
    """

    name: str
    uri: str
    table: Any
    class_names: tuple[str, ...]
    like: "DataSet | None" = None

    @cached_property
    def sha256(self) -> str:
        """Hash of what the images are: id, picture bytes, label, split and group, row by row."""
        digest = hashlib.sha256()
        columns = [self.table[name] for name in ("id", "image", "label", "split", "group")]
        for row in zip(*columns, strict=True):
            for value in (scalar.as_py() for scalar in row):
                body = value if isinstance(value, bytes) else _text(value)
                digest.update(len(body).to_bytes(8, "little") + body)
        return digest.hexdigest()

    def splits(self) -> tuple[str, ...]:
        """Return the names of the splits: train, val, test, then any others."""
        names = set(self.table["split"].unique().to_pylist())
        return tuple([name for name in _SPLIT_ORDER if name in names] + sorted(names - set(_SPLIT_ORDER)))

    def channels(self) -> int:
        """Return 1 if every picture of every split is grey (also grey kept as colour JPEG), else 3.

        Raises:
            DataError: If a picture is damaged.
        """
        return self._channels if self.like is None else self.like.channels()

    @cached_property
    def _channels(self) -> int:
        pictures, ids = self.table["image"], self.table["id"]

        def all_grey(rows: range) -> bool:
            return all(is_grey(decode(pictures[row].as_py(), ids[row].as_py())) for row in rows)

        with ThreadPoolExecutor(_threads()) as pool:
            return 1 if all(pool.map(all_grey, _chunks(self.table.num_rows))) else 3

    def images(self, split: str, size: tuple[int, int] | None = None) -> ImageSet:
        """Return the images of a split, decoded, all in the channels of the whole data set.

        Args:
            split: One of `splits`.
            size: Height and width to resize to (bilinear, antialiased); None keeps the size they have.

        Raises:
            DataError: If the split is unknown, labels are missing, a picture is damaged, or, without
                ``size``, pictures differ in size.
        """
        if split not in self.splits():
            raise DataError(f"{self.name}: expected one of the splits {', '.join(self.splits())}, got {split}")
        if size is not None and min(size) < 1:
            raise DataError(f"{self.name}: expected a size (height, width) of at least 1 pixel, got {size}")
        rows = np.flatnonzero(np.asarray(self.table["split"]) == split)
        labels = self._labels(rows, split)
        ids = tuple(self.table["id"].take(rows).to_pylist())
        groups = tuple(self.table["group"].take(rows).to_pylist())
        mode = "L" if self.channels() == 1 else "RGB"
        pixels = self._decoded(rows, ids, mode, size)
        return ImageSet(pixels, labels, ids, groups, self.class_names, self.name, split)

    def check_labels(self, split: str) -> None:
        """Refuse a split with images that have no label, without decoding one.

        Raises:
            DataError: If labels are missing.
        """
        self._labels(np.flatnonzero(np.asarray(self.table["split"]) == split), split)

    def _labels(self, rows: NDArray[np.int64], split: str) -> NDArray[np.int64]:
        labels = np.asarray(self.table["label"].take(rows).fill_null(-1), dtype=np.int64)
        missing = int((labels < 0).sum())
        if missing:
            raise DataError(
                f"{self.name}: expected a label for every image of split {split}, "
                f"got none for {missing} of {len(labels)}"
            )
        return labels

    def _decoded(
        self, rows: NDArray[np.int64], ids: Sequence[str], mode: str, size: tuple[int, int] | None
    ) -> NDArray[np.uint8]:
        """Return uint8 ``(n, h, w, c)``, decoded by a few threads into one array."""
        encoded = self.table["image"]
        if size is None:
            width, height = decode(encoded[int(rows[0])].as_py(), ids[0]).size
        else:
            height, width = size
        pixels = np.empty((len(rows), height, width, len(mode)), np.uint8)

        def fill(places: range) -> None:
            for place in places:
                picture = decode(encoded[int(rows[place])].as_py(), ids[place]).convert(mode)
                if picture.size != (width, height):
                    if size is None:
                        raise DataError(_sizes_differ(ids[0], (width, height), ids[place], picture.size))
                    picture = picture.resize((width, height), Image.Resampling.BILINEAR)
                pixels[place] = np.asarray(picture).reshape(height, width, len(mode))

        with ThreadPoolExecutor(_threads()) as pool:
            for _ in pool.map(fill, _chunks(len(rows))):  # in order: the first damaged picture is the one named
                pass
        return pixels


def open_data(uri: str) -> DataSet:
    """Return the data set at a path, URI, folder or pattern of Parquet files, or a phantom.

    Raises:
        DataError: If it is no data set, or contradicts itself.
        StoreError: If nothing is there, or it cannot be read.
    """
    if uri.startswith(phantoms.SCHEME):
        table = phantoms.phantom_table(phantoms.parse(uri))
        return DataSet(phantoms.NAME, uri, table, phantoms.CLASS_NAMES)
    name, table = read_data_files(uri)
    return DataSet(name, uri, table, class_names_of(table, uri))


def load_images(uri: str, split: str = "train", size: int | tuple[int, int] | None = None) -> ImageSet:
    """Return the images of one split of the data set at ``uri``; see `open_data` and `DataSet.images`.

    One number is the side of a square.
    """
    return open_data(uri).images(split, (size, size) if isinstance(size, int) else size)


def with_attacker(dataset: DataSet, share: float) -> DataSet:
    """Return the data set with a share of its test images, by patient, in a split of its own: ``attacker``.

    Who searches without the classifier's gradients has not its training images either (Koga & Takemoto 2022), so he is
    given images that no classifier has learnt from. Same data set and share: same split.

    Raises:
        DataError: If there are no test images, labels are missing, or there is a split of that name.
    """
    if ATTACKER in dataset.splits() or "test" not in dataset.splits():
        came = ", ".join(dataset.splits())
        raise DataError(f"{dataset.name}: expected a split test and none called {ATTACKER}, got {came}")
    splits = np.asarray(dataset.table["split"]).astype(object)
    rows = np.flatnonzero(splits == "test")
    held = held_out(dataset._labels(rows, "test"), dataset.table["group"].take(rows).to_pylist(), share, 0)
    splits[rows[held]] = ATTACKER
    place = dataset.table.schema.get_field_index("split")
    table = dataset.table.set_column(place, "split", pa.array(splits.tolist(), pa.string()))
    return replace(dataset, table=table, like=dataset)


def with_source(dataset: DataSet, name: str, foreign: DataSet, split: str) -> DataSet:
    """Return the data set with images of another one in a split of its own, in the channels of the data set.

    Perturbations are made from them (Minagi et al. 2022 took natural images), and nothing is judged on them. Their
    classes are not those of the data set: their labels are all 0.

    Raises:
        DataError: If the other data set has no such split, or there is one of that name.
    """
    if split not in foreign.splits():
        raise DataError(f"{foreign.name}: expected one of the splits {', '.join(foreign.splits())}, got {split}")
    if name in dataset.splits():
        raise DataError(f"{dataset.name}: expected a name that none of the splits has, got {name}")
    rows = foreign.table.filter(pa.compute.equal(foreign.table["split"], split))
    count = rows.num_rows
    table = pa.table(
        {
            "id": rows["id"],
            "image": rows["image"],
            "label": pa.array([0] * count, pa.int64()),
            "split": pa.array([name] * count, pa.string()),
            "group": rows["group"],
        }
    )
    own = dataset.table.select(table.column_names)
    table = table.cast(own.schema)
    return replace(dataset, table=pa.concat_tables([own, table]), like=dataset.like or dataset)


def shared_groups(dataset: DataSet) -> dict[tuple[str, str], int]:
    """Return how many patients each pair of splits shares; pairs that share none are left out."""
    members: dict[str, set[str]] = {split: set() for split in dataset.splits()}
    for split, group in zip(dataset.table["split"].to_pylist(), dataset.table["group"].to_pylist(), strict=True):
        if group is not None:
            members[split].add(group)
    counts = {(one, two): len(members[one] & members[two]) for one, two in combinations(members, 2)}
    return {pair: count for pair, count in counts.items() if count}


def _sizes_differ(id_1: str, size_1: tuple[int, int], id_2: str, size_2: tuple[int, int]) -> str:
    sizes = f"{id_1} is {size_1[1]}x{size_1[0]} and {id_2} {size_2[1]}x{size_2[0]} (height x width)"
    return f"expected pictures of one size, but {sizes}; give a size to resize them all to"


def _text(value: Any) -> bytes:
    return b"\0" if value is None else str(value).encode()


def _threads() -> int:
    return min(_DECODERS, os.cpu_count() or 1)


def _chunks(count: int) -> list[range]:
    return [range(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]
