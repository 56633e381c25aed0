"""Rows and perturbations as objects: one object a step and table, written whole."""

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from uapray.errors import NotFoundError, StoreError
from uapray.objects import Objects, open_objects, read_all
from uapray.store.schema import TABLES, with_grid

if TYPE_CHECKING:
    from torch import Tensor

_TENSOR = "perturbation"


@dataclass(frozen=True)
class Results:
    """The tables of `TABLES` and the perturbations below one URI.

    A key is written at most once with one content, so that repeating, racing and resuming need no lock.
    """

    objects: Objects

    def write_rows(self, table: str, grid: str, key: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the rows of one step as the object ``<table>/grid=<grid>/<key>.parquet``.

        Args:
            table: A name in `TABLES`.
            grid: Grid the step belongs to; any text.
            key: Step key.
            rows: One mapping a row, by column; a column that may be null can be left out.

        Raises:
            StoreError: If a column is unknown, missing or of another type, or the object cannot be written.
        """
        schema = _schema_of(table)
        for row in rows:
            _check_columns(table, schema, row)
        try:
            content = pa.Table.from_pylist([dict(row) for row in rows], schema=schema)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
            raise StoreError(f"{table}: a value is not of its column's type: {error}") from error
        body = io.BytesIO()
        pq.write_table(content, body, compression="zstd")
        self.objects.write(f"{_folder(table, grid)}{_part(key)}.parquet", body.getvalue())

    def rows(self, table: str, grid: str | None = None) -> pa.Table:
        """Return a table, of one grid or of all, with the column ``grid``; no rows if nothing is there."""
        try:
            return self.dataset(table, grid).to_table()
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OSError) as error:
            raise StoreError(f"{self.objects.uri}: {table} cannot be read: {error}") from error

    def step(self, table: str, key: str) -> pa.Table:
        """Return the rows of one step as they were written, by whichever grid; only its object is read.

        Raises:
            NotFoundError: If there are none.
        """
        grid = min((grid for grid, of_grid in self.keys(table) if of_grid == key), default=None)
        if grid is None:
            raise NotFoundError(f"{self.objects.uri}: no rows of {key} in {table}")
        name = f"{_folder(table, grid)}{_part(key)}.parquet"
        body = _whole(self.objects.read(name), f"{self.objects.uri}/{name}")
        return pq.read_table(pa.BufferReader(body))

    def dataset(self, table: str, grid: str | None = None) -> ds.FileSystemDataset:
        """Return a table to scan by column and row group; its objects are fetched at once, many at a time.

        Raises:
            StoreError: If the table is unknown, or an object is damaged (it is named).
        """
        schema, prefix = _schema_of(table), f"{table}/" if grid is None else _folder(table, grid)
        keys = _each_step_once(key for key in self.objects.keys(prefix) if _is_rows(key))
        format_ = ds.ParquetFileFormat()
        fragments = [
            format_.make_fragment(
                _whole(body, f"{self.objects.uri}/{key}"), partition_expression=ds.field("grid") == _grid(key)
            )
            for key, body in zip(keys, read_all(self.objects, keys), strict=True)
        ]
        return ds.FileSystemDataset(fragments, with_grid(schema), format_, None)

    def keys(self, table: str) -> set[tuple[str, str]]:
        """Return (grid, key) of every object of a table: the steps that are done."""
        _schema_of(table)
        found = [key for key in self.objects.keys(f"{table}/") if _is_rows(key)]
        return {(_grid(key), unquote(key.rpartition("/")[2].removesuffix(".parquet"))) for key in found}

    def write_array(
        self, trial_id: str, perturbation: "Tensor | NDArray[np.float32]", metadata: Mapping[str, str]
    ) -> None:
        """Write a perturbation as ``perturbations/<trial_id>.safetensors``.

        Args:
            trial_id: Step key of its search.
            perturbation: float32 ``(c, h, w)``, pixel units.
            metadata: Free text by name, kept in the file's header.

        Raises:
            StoreError: If it is no float32 ``(c, h, w)``, or cannot be written.
        """
        array = perturbation if isinstance(perturbation, np.ndarray) else perturbation.detach().cpu().numpy()
        if array.dtype != np.float32 or array.ndim != 3:
            raise StoreError(f"{trial_id}: expected float32 (c, h, w), got {array.dtype} {array.shape}")
        # safetensors writes the memory of a strided array as it lies
        tensors = {_TENSOR: np.ascontiguousarray(array)}
        self.objects.write(_array_key(trial_id), safetensors.numpy.save(tensors, dict(metadata)))

    def read_array(self, trial_id: str) -> NDArray[np.float32]:
        """Return a perturbation, float32 ``(c, h, w)``; `NotFoundError` if there is none."""
        key = _array_key(trial_id)
        try:
            array = safetensors.numpy.load(self.objects.read(key))[_TENSOR]
        except (SafetensorError, KeyError, ValueError) as error:
            raise StoreError(f"{self.objects.uri}/{key}: damaged, or no perturbation: {error}") from error
        return np.array(array, dtype=np.float32)

    def read_array_metadata(self, trial_id: str) -> dict[str, str]:
        """Return what was kept beside a perturbation; `NotFoundError` if there is none."""
        key = _array_key(trial_id)
        body = self.objects.read(key)
        try:
            header = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])  # the format's own layout
            return dict(header.get("__metadata__", {}))
        except (ValueError, AttributeError) as error:
            raise StoreError(f"{self.objects.uri}/{key}: damaged, or no perturbation: {error}") from error

    def has_array(self, trial_id: str) -> bool:
        """Whether a perturbation of that search is there."""
        return self.objects.exists(_array_key(trial_id))


def open_results(uri: str) -> Results:
    """Return the results below a path, ``file://…`` or ``s3://bucket/prefix``; touches nothing."""
    return Results(open_objects(uri))


def _schema_of(table: str) -> pa.Schema:
    if table not in TABLES:
        raise StoreError(f"table: expected one of {', '.join(TABLES)}, got {table!r}")
    return TABLES[table]


def _check_columns(table: str, schema: pa.Schema, row: Mapping[str, Any]) -> None:
    if unknown := sorted(row.keys() - set(schema.names)):
        raise StoreError(f"{table}: unknown column {', '.join(unknown)}; expected {', '.join(schema.names)}")
    if missing := [field.name for field in schema if not field.nullable and row.get(field.name) is None]:
        raise StoreError(f"{table}: expected a value in {', '.join(missing)}, got none")
    for field in schema:
        value = row.get(field.name)
        # pyarrow would cut 1.5 down to 1
        if pa.types.is_integer(field.type) and not isinstance(value, Integral | None):
            raise StoreError(f"{table}: {field.name} is not of its column's type: expected an integer, got {value!r}")


def _part(name: str) -> str:
    """Return a name as one part of a key, escaped as Hive readers undo it."""
    if not name:
        raise StoreError("expected the name of a grid or step, got an empty one")
    return quote(name, safe=" ")


def _folder(table: str, grid: str) -> str:
    return f"{table}/grid={_part(grid)}/"


def _each_step_once(keys: Iterable[str]) -> list[str]:
    """Keep the first grid's object of each step: two grids that ran the same step wrote the same rows."""
    return list({key.rpartition("/")[2]: key for key in reversed(list(keys))}.values())[::-1]


def _is_rows(key: str) -> bool:
    parts = key.split("/")
    return len(parts) == 3 and parts[1].startswith("grid=") and parts[2].endswith(".parquet")


def _grid(key: str) -> str:
    return unquote(key.split("/")[1].removeprefix("grid="))


def _whole(body: bytes, uri: str) -> pa.Buffer:
    """Refuse a damaged object by its name: the scan itself would not say which it was."""
    buffer = pa.py_buffer(body)
    try:
        pq.read_metadata(pa.BufferReader(buffer))
    except (pa.ArrowInvalid, OSError) as error:
        raise StoreError(f"{uri}: damaged, no whole Parquet file; delete it and run its grid again") from error
    return buffer


def _array_key(trial_id: str) -> str:
    return f"perturbations/{_part(trial_id)}.safetensors"
