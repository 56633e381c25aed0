"""Rows and perturbations as objects: one object a step and table, written whole."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from uapray.errors import NotFoundError, StoreError
from uapray.objects import Objects, open_objects, read_all
from uapray.store.files import VERSION_KEY, check_version, decode, encode, only, whole
from uapray.store.holding import Finished, Holding, Share, finished, holdings, object_name, part, shares, until_settled
from uapray.store.schema import OF_CLASSIFIERS, PARTS, SCHEMA_VERSION, TABLES, with_grid

if TYPE_CHECKING:
    from torch import Tensor

_TENSOR = "perturbation"
_REPLACED = PARTS | OF_CLASSIFIERS | {"history"}  # a perturbation or a classifier ends their steps


@dataclass(frozen=True)
class Results:
    """The tables of `TABLES` and the perturbations below one URI.

    Whoever repeats, races or resumes a step writes the same objects, so that no lock is needed. What is read is of
    finished steps alone, each once (`uapray.store.holding`).
    """

    objects: Objects

    def write_rows(self, table: str, grid: str, key: str, rows: Sequence[Mapping[str, Any]]) -> bool:
        """Write the rows of one step as the object ``<table>/grid=<grid>/<key>.parquet``.

        Rows that are a step of their own, or end one as those of ``trials`` do, stay as they were first written.
        Those that a later one makes count are replaced until then: who was killed may have been another version.

        Args:
            table: A name in `TABLES`.
            grid: Grid the step belongs to; any text.
            key: Step key.
            rows: One mapping a row, by column; a column that may be null can be left out.

        Returns:
            Whether these rows stand now; False if another run was faster.

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
        name, body = object_name(table, grid, key), encode(content)
        if table not in _REPLACED:
            return self.objects.write_once(name, body)
        if table in PARTS and self.objects.exists(object_name("trials", grid, key)):
            return False
        self.objects.write(name, body)
        return True

    def rows(self, table: str, grid: str | None = None) -> pa.Table:
        """Return a table, of one grid or of all, with the column ``grid``; no rows if nothing is there."""
        return self.tables([table], grid)[table]

    def tables(self, names: Sequence[str], grid: str | None = None) -> dict[str, pa.Table]:
        """Return several tables as `rows` would, all as of one moment: no trial is in one and not in the other."""
        found = {}
        for name, dataset in self.datasets(names, grid).items():
            try:
                found[name] = dataset.to_table()
            except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OSError) as error:
                raise StoreError(f"{self.objects.uri}: {name} cannot be read: {error}") from error
        return found

    def step(self, table: str, key: str) -> pa.Table:
        """Return the rows of one finished step as they were written, by whichever grid; only its object is read.

        Raises:
            NotFoundError: If there are none.
        """
        found = until_settled(lambda: self._step(table, key))
        if found is None:
            raise NotFoundError(f"{self.objects.uri}: no rows of {key} in {table}")
        return found

    def dataset(self, table: str, grid: str | None = None) -> ds.FileSystemDataset:
        """Return a table to scan by column and row group; its objects are fetched at once, many at a time.

        Raises:
            StoreError: If the table is unknown, or an object is damaged or of a later version (it is named).
        """
        return self.datasets([table], grid)[table]

    def datasets(self, tables: Sequence[str], grid: str | None = None) -> dict[str, ds.FileSystemDataset]:
        """Return several tables as `dataset` would, all as of one moment."""

        def read() -> dict[str, ds.FileSystemDataset]:
            return {table: self._open(table, chosen) for table, chosen in self._shares(tables, grid).items()}

        return until_settled(read)

    def keys(self, table: str) -> set[tuple[str, str]]:
        """Return (grid, key) of the finished steps that wrote to a table."""
        found, done = until_settled(lambda: self._holdings([table]))
        return {(one.grid, step) for one in found[table] for step in one.steps if done.has(table, one.grid, step)}

    def judgements(self) -> set[tuple[str, str]]:
        """Return table and key of the judgements that stand, whichever grid asked for them."""
        tables = ("trials", "renderings", "controls", "curves")
        return {(table, key) for table in tables for _, key in self.keys(table)}

    def expect_trials(self, purpose: str, grid: str | None = None) -> None:
        """Refuse a store without trials, since nothing can be said of it.

        Args:
            purpose: What they are wanted for, e.g. "to report on".
            grid: Trials of this grid; None: of any.

        Raises:
            StoreError: If there is none; it names the grids that have some.
        """
        grids = {name for name, _ in self.keys("trials")}
        if grid is not None and grids and grid not in grids:
            names = ", ".join(sorted(grids))
            raise StoreError(f"{self.objects.uri}: no trial of grid {grid!r}; there are trials of {names}")
        if not grids:
            raise StoreError(f"{self.objects.uri}: expected trials {purpose}, found none; run a grid into it first")

    def _holdings(self, tables: Sequence[str], grid: str | None = None) -> tuple[dict[str, list[Holding]], Finished]:
        """List tables, and before them what says which of their steps are finished."""
        for table in tables:
            _schema_of(table)
        trials = holdings(self.objects, "trials", grid) if PARTS.union(["trials"]).intersection(tables) else []
        done = finished(self.objects, tables, trials)
        return {table: trials if table == "trials" else holdings(self.objects, table, grid) for table in tables}, done

    def _shares(self, tables: Sequence[str], grid: str | None = None) -> dict[str, list[Share]]:
        found, done = self._holdings(tables, grid)
        return {table: shares(ones, partial(done.has, table)) for table, ones in found.items()}

    def _step(self, table: str, key: str) -> pa.Table | None:
        for share in self._shares([table])[table]:
            if key in share.wanted:
                (body,) = self._bodies([Share(share.holding, frozenset({key}))])
                return decode(body, self._uri(share.holding))
        return None

    def _open(self, table: str, chosen: Sequence[Share]) -> ds.FileSystemDataset:
        checked = ds.ParquetFragmentScanOptions(page_checksum_verification=True)
        format_ = ds.ParquetFileFormat(default_fragment_scan_options=checked)
        fragments = [
            format_.make_fragment(
                whole(body, self._uri(share.holding)),
                partition_expression=ds.field("grid") == share.holding.grid,
            )
            for share, body in zip(chosen, self._bodies(chosen), strict=True)
        ]
        return ds.FileSystemDataset(fragments, with_grid(_schema_of(table)), format_, None)

    def _bodies(self, chosen: Sequence[Share]) -> list[bytes]:
        """Return a Parquet file for each share, with its rows alone."""
        bodies = read_all(self.objects, [share.holding.name for share in chosen])
        return [
            body if share.whole else only(body, share.holding.steps, share.wanted, self._uri(share.holding))
            for share, body in zip(chosen, bodies, strict=True)
        ]

    def _uri(self, holding: Holding) -> str:
        return f"{self.objects.uri}/{holding.name}"

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
        notes = {**metadata, VERSION_KEY: SCHEMA_VERSION}
        self.objects.write(_array_key(trial_id), safetensors.numpy.save(tensors, notes))

    def read_array(self, trial_id: str) -> NDArray[np.float32]:
        """Return a perturbation, float32 ``(c, h, w)``; `NotFoundError` if there is none."""
        body, _ = self._array(trial_id)
        try:
            array = safetensors.numpy.load(body)[_TENSOR]
        except (SafetensorError, KeyError, ValueError) as error:
            raise StoreError(f"{self._array_uri(trial_id)}: damaged, or no perturbation: {error}") from error
        return np.array(array, dtype=np.float32)

    def read_array_metadata(self, trial_id: str) -> dict[str, str]:
        """Return what was kept beside a perturbation; `NotFoundError` if there is none."""
        _, notes = self._array(trial_id)
        return {name: text for name, text in notes.items() if name != VERSION_KEY}

    def has_array(self, trial_id: str) -> bool:
        """Whether a perturbation of that search is there."""
        return self.objects.exists(_array_key(trial_id))

    def _array(self, trial_id: str) -> tuple[bytes, dict[str, str]]:
        """Return the file of a perturbation and the free text in its header, of a version that is known."""
        body, uri = self.objects.read(_array_key(trial_id)), self._array_uri(trial_id)
        try:
            header = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])  # the format's own layout
            notes = dict(header.get("__metadata__", {}))
        except (ValueError, AttributeError) as error:
            raise StoreError(f"{uri}: damaged, or no perturbation: {error}") from error
        check_version(notes.get(VERSION_KEY, "1"), uri)
        return body, notes

    def _array_uri(self, trial_id: str) -> str:
        return f"{self.objects.uri}/{_array_key(trial_id)}"


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


def _array_key(trial_id: str) -> str:
    return f"perturbations/{part(trial_id)}.safetensors"
