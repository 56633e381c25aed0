"""A data set by URI: pictures still encoded, decoded split by split when they are needed."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, combinations, islice
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray
from PIL import Image

from uapray.data import phantoms
from uapray.data.encoded import Encoded, read
from uapray.data.images import ImageSet, held_out
from uapray.data.pictures import decode, is_grey
from uapray.data.table import class_names_of, in_memory, read_data_files
from uapray.errors import DataError

ATTACKER = "attacker"
_SPLIT_ORDER = ("train", "val", "test")
_DECODERS = 8
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class DataSet:
    """A table of encoded pictures with their labels, splits and patients.

    Attributes:
        name: Name of the data set, made from its file names.
        uri: Where it came from, as it was asked for.
        table: pyarrow table, a row an image: the columns of docs/data.md but ``image``, and ``place``, which counts
            through the pictures.
        class_names: Names of the classes, in the order of their labels.
        pictures: The files that hold them, still encoded.
        like: Data set whose channels the images are brought to; None: their own.
    """

    name: str
    uri: str
    table: Any
    class_names: tuple[str, ...]
    pictures: tuple[Encoded, ...]
    like: "DataSet | None" = None

    @cached_property
    def sha256(self) -> str:
        """Hash of what the images are: id, picture bytes, label, split and group, row by row."""
        digest = hashlib.sha256()
        ids, *others = (self.table[name] for name in ("id", "label", "split", "group"))
        bodies = chain.from_iterable(read(self.pictures, self._places))
        for name, body, *values in zip(ids, bodies, *others, strict=True):
            for part in (_text(name), body, *map(_text, values)):
                digest.update(len(part).to_bytes(8, "little") + part)
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
        return 1 if all(self.each(np.arange(self.table.num_rows), is_grey)) else 3

    def each(self, rows: NDArray[np.int64], act: Callable[[Image.Image], T]) -> Iterator[T]:
        """Yield what is made of each picture: read a few at a time, decoded and acted on by a few threads.

        Args:
            rows: Which pictures, rising, int64 ``(n,)``.
            act: Called with a picture in mode ``L`` or ``RGB``.

        Raises:
            DataError: If a picture is damaged.
        """
        ids = iter(self.table["id"].take(pa.array(rows)))

        def decoded(body: bytes, name: Any) -> T:
            return act(decode(body, name.as_py()))

        with ThreadPoolExecutor(_threads()) as pool:
            under_way: Iterator[T] = iter(())
            for bodies in read(self.pictures, self._places[rows]):
                before, under_way = under_way, pool.map(decoded, bodies, islice(ids, len(bodies)))
                yield from before  # in order: the first damaged picture is the one named
            yield from under_way

    @property
    def _places(self) -> NDArray[np.int64]:
        return np.asarray(self.table["place"])

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
        rows = self.rows(split)
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
        self._labels(self.rows(split), split)

    def rows(self, split: str) -> NDArray[np.int64]:
        """Return the rows of a split's images, rising."""
        return np.flatnonzero(np.asarray(pa.compute.equal(self.table["split"], split)))

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
        """Return uint8 ``(n, h, w, c)``."""

        def pixels_of(picture: Image.Image) -> NDArray[np.uint8]:
            picture = picture.convert(mode)
            if size is not None and picture.size != size[::-1]:
                picture = picture.resize(size[::-1], Image.Resampling.BILINEAR)
            return np.asarray(picture).reshape(picture.height, picture.width, len(mode))

        pixels = np.empty((len(rows), 0, 0, len(mode)), np.uint8)
        for place, one in enumerate(self.each(rows, pixels_of)):
            if place == 0:
                pixels = np.empty((len(rows), *one.shape), np.uint8)
            if one.shape != pixels.shape[1:]:
                raise DataError(_sizes_differ(ids[0], pixels.shape[1:], ids[place], one.shape))
            pixels[place] = one
        return pixels


def open_data(uri: str) -> DataSet:
    """Return the data set at a path, URI, folder or pattern of Parquet files, or a phantom.

    Raises:
        DataError: If it is no data set, or contradicts itself.
        StoreError: If nothing is there, or it cannot be read.
    """
    if uri.startswith(phantoms.SCHEME):
        return dataset_of(phantoms.NAME, uri, phantoms.phantom_table(phantoms.parse(uri)), phantoms.CLASS_NAMES)
    name, table, pictures = read_data_files(uri)
    return DataSet(name, uri, _counted(table), class_names_of(table, uri), pictures)


def dataset_of(name: str, uri: str, table: Any, class_names: tuple[str, ...]) -> DataSet:
    """Return the data set of a table in memory that has all columns of docs/data.md."""
    columns, pictures = in_memory(table, uri)
    return DataSet(name, uri, _counted(columns), class_names, (pictures,))


def _counted(table: Any) -> Any:
    return table.append_column("place", pa.array(np.arange(table.num_rows)))


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


def with_source(
    dataset: DataSet, name: str, foreign: DataSet, split: str, chosen: NDArray[np.int64] | None = None
) -> DataSet:
    """Return the data set with images of another one in a split of its own, in the channels of the data set.

    Perturbations are made from them (Minagi et al. 2022 took natural images), and nothing is judged on them. Their
    classes are not those of the data set: their labels are all 0.

    Args:
        dataset: What is judged.
        name: Of the split that they come in.
        foreign: The other data set.
        split: Of it.
        chosen: Which images of that split, rising, int64 ``(n,)``; None: all. Others are never decoded.

    Raises:
        DataError: If the other data set has no such split, or there is one of that name.
    """
    if split not in foreign.splits():
        raise DataError(f"{foreign.name}: expected one of the splits {', '.join(foreign.splits())}, got {split}")
    if name in dataset.splits():
        raise DataError(f"{dataset.name}: expected a name that none of the splits has, got {name}")
    rows = foreign.rows(split)
    taken = foreign.table.take(pa.array(rows if chosen is None else rows[chosen]))
    count, before = taken.num_rows, sum(map(len, dataset.pictures))
    columns = {
        "id": taken["id"],
        "label": pa.array([0] * count, pa.int64()),
        "split": pa.array([name] * count, pa.string()),
        "group": taken["group"],
        "place": pa.compute.add(taken["place"], before),
    }
    own = dataset.table.select(list(columns))
    table = pa.concat_tables([own, pa.table(columns)])
    pictures = (*dataset.pictures, *foreign.pictures)
    return replace(dataset, table=table, pictures=pictures, like=dataset.like or dataset)


def shared_groups(dataset: DataSet) -> dict[tuple[str, str], int]:
    """Return how many patients each pair of splits shares; pairs that share none are left out."""
    members: dict[str, set[str]] = {split: set() for split in dataset.splits()}
    for split, group in zip(dataset.table["split"].to_pylist(), dataset.table["group"].to_pylist(), strict=True):
        if group is not None:
            members[split].add(group)
    counts = {(one, two): len(members[one] & members[two]) for one, two in combinations(members, 2)}
    return {pair: count for pair, count in counts.items() if count}


def _sizes_differ(id_1: str, size_1: tuple[int, ...], id_2: str, size_2: tuple[int, ...]) -> str:
    sizes = f"{id_1} is {size_1[0]}x{size_1[1]} and {id_2} {size_2[0]}x{size_2[1]} (height x width)"
    return f"expected pictures of one size, but {sizes}; give a size to resize them all to"


def _text(scalar: Any) -> bytes:
    value = scalar.as_py()
    return b"\0" if value is None else str(value).encode()


def _threads() -> int:
    return min(_DECODERS, os.cpu_count() or 1)
