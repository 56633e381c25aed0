"""Encoded pictures where they lie, read as they are wanted: never a whole file in memory."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from uapray.errors import DataError

AT_ONCE = 64  # pictures that are handed on together
_BUFFER_BYTES = 8 * 2**20  # of a file that are read at once


@dataclass(frozen=True, eq=False, slots=True)
class Encoded:
    """The pictures of one Parquet file, its column ``image``.

    Attributes:
        uri: Where it is.
        footer: What the file says of itself, read once.
        opened: Opens the file to be read in pieces.
    """

    uri: str
    footer: Any
    opened: Callable[[], Any]

    def __len__(self) -> int:
        return int(self.footer.num_rows)

    def read(self, rows: NDArray[np.int64]) -> Iterator[list[bytes]]:
        """Yield the pictures of some rows, which rise, at most `AT_ONCE` together.

        Row groups that hold none of them are passed over; of the others a few pages are in memory at a time.

        Raises:
            DataError: If a picture is missing, or the file is not the one that was opened or cannot be read.
        """
        groups = range(self.footer.num_row_groups)
        with parquet(self.uri, self.opened, buffer_size=_BUFFER_BYTES) as file:
            if not file.metadata.equals(self.footer):
                raise DataError(f"{self.uri}: expected the file that was opened, got another; start again")
            for group, inside in _shared(rows, (self.footer.row_group(group).num_rows for group in groups)):
                yield from self._of_group(file, group, inside)

    def _of_group(self, file: Any, group: int, rows: NDArray[np.int64]) -> Iterator[list[bytes]]:
        begun = 0
        for batch in file.iter_batches(AT_ONCE, row_groups=[group], columns=["image"], use_threads=False):
            first, last = np.searchsorted(rows, (begun, begun + len(batch)))
            pictures = batch.column(0).take(pa.array(rows[first:last] - begun)).cast(pa.binary())
            if pictures.null_count:
                raise DataError(f"{self.uri}: expected a value in every row of image, got {pictures.null_count} nulls")
            if len(pictures):
                yield pictures.to_pylist()
            begun += len(batch)
            if last == len(rows):
                return


def read(files: Sequence[Encoded], places: NDArray[np.int64]) -> Iterator[list[bytes]]:
    """Yield pictures of several files, which are counted through: at most `AT_ONCE` together.

    Args:
        files: One after another.
        places: Which pictures, rising, int64 ``(n,)``.
    """
    for file, rows in _shared(places, map(len, files)):
        yield from files[file].read(rows)


@contextmanager
def parquet(uri: str, opened: Callable[[], Any], **how: Any) -> Iterator[Any]:
    """Open a Parquet file for the time of the block; what goes wrong with it is told in a line."""
    try:
        with closing(opened()) as body, pq.ParquetFile(body, **how) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{uri}: expected a Parquet file, got one that cannot be read: {error}") from error


def _shared(places: NDArray[np.int64], counts: Iterable[int]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield which of several pieces, counted through, hold some of the places, and the places inside each."""
    begins = np.cumsum([0, *counts])
    for piece, (begin, end) in enumerate(pairwise(begins)):
        first, last = np.searchsorted(places, (begin, end))
        if first < last:
            yield piece, places[first:last] - begin
