"""The data set file: its columns, read and checked, named and written."""

import io
import os
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from uapray.data.encoded import Encoded, parquet
from uapray.errors import DataError
from uapray.objects import expand_uri, open_uri

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.binary()),
        ("label", pa.int64()),
        ("label_name", pa.string()),
        ("split", pa.string()),
        ("group", pa.string()),
    ]
)
ROWS_PER_GROUP = 256
_REQUIRED = ("id", "image", "split")
_WITHOUT_IMAGE = tuple(name for name in SCHEMA.names if name != "image")
MOST_CLASSES = 10_000  # a larger label is a mistake, not a class
_SPLIT_SUFFIX = re.compile(r"[-_.](train|test|val)$")


def table_of(columns: Mapping[str, Sequence[Any]]) -> Any:
    """Return a table of the columns of `SCHEMA`, one value an image."""
    return pa.table({name: pa.array(columns[name], SCHEMA.field(name).type) for name in SCHEMA.names}, SCHEMA)


def read_data_files(uri: str) -> tuple[str, Any, tuple[Encoded, ...]]:
    """Return name, table and pictures of the data set that a path, URI, folder or pattern means, checked.

    The table has the columns of `SCHEMA` but ``image``, in its types; those a file leaves out are null. Pictures are
    not read.

    Raises:
        DataError: If a file is no Parquet, lacks a column, or ids or class names contradict each other.
        StoreError: If there is no file, or it cannot be read.
    """
    files = expand_uri(uri)
    read = [_read(file) for file in files]
    table, pictures = pa.concat_tables([columns for columns, _ in read]), tuple(one for _, one in read)
    if table.num_rows == 0:
        raise DataError(f"{uri}: expected images, got an empty table")
    _check_ids(uri, table)
    return _name(files), table, pictures


def in_memory(table: Any, uri: str) -> tuple[Any, Encoded]:
    """Return a table of the columns of `SCHEMA` without its pictures, and these, encoded as a file of its own."""
    body = encode(table)
    return table.drop_columns("image"), Encoded(
        uri, pq.read_metadata(pa.BufferReader(body)), partial(pa.BufferReader, body)
    )


def class_names_of(table: Any, uri: str) -> tuple[str, ...]:
    """Return the class names in the order of their labels; a label without a name is called by its number.

    Raises:
        DataError: If a label has two names or a name two labels.
    """
    pairs = table.select(["label", "label_name"]).group_by(["label", "label_name"]).aggregate([]).to_pylist()
    names: dict[int, str] = {}
    labels: dict[str, int] = {}
    for label, name in sorted((row["label"], row["label_name"]) for row in pairs if _is_class(row)):
        if label >= MOST_CLASSES:
            raise DataError(f"{uri}: expected labels that count from 0, got label {label}")
        if names.setdefault(label, name) != name:
            raise DataError(f"{uri}: expected one name for label {label}, got {names[label]} and {name}")
        if labels.setdefault(name, label) != label:
            raise DataError(f"{uri}: expected one label for class {name}, got {labels[name]} and {label}")
    top = max((row["label"] for row in pairs if row["label"] is not None), default=-1)
    return tuple(names.get(label, str(label)) for label in range(min(top, MOST_CLASSES) + 1))


def encode(table: Any) -> bytes:
    """Return the table as a Parquet file: zstd, in row groups that can be streamed or split over workers."""
    body = io.BytesIO()
    pq.write_table(
        table, body, compression="zstd", row_group_size=ROWS_PER_GROUP, use_dictionary=["label_name", "split"]
    )
    return body.getvalue()


def _is_class(row: Mapping[str, Any]) -> bool:
    return row["label"] is not None and row["label"] >= 0 and row["label_name"] is not None


def _read(file: str) -> tuple[Any, Encoded]:
    """Return a file's columns but ``image``, and its pictures, of which nothing is read."""
    opened = partial(open_uri, file)
    with parquet(file, opened, pre_buffer=True) as body:
        came = body.schema_arrow.names
        names = {"id" if name == "filename" and "id" not in came else name: name for name in came}
        missing = [name for name in _REQUIRED if name not in names]
        if missing:
            expected = f"expected the columns {', '.join(_REQUIRED)}"
            raise DataError(f"{file}: {expected}, got {', '.join(names)}; import it first")
        _column(body.schema_arrow.empty_table(), SCHEMA.field("image"), file)
        there = [name for name in _WITHOUT_IMAGE if name in names]
        stored = [names[name] for name in there]
        table = body.read(stored).select(stored).rename_columns(there)
        pictures = Encoded(file, body.metadata, opened)
    columns = {name: _column(table, SCHEMA.field(name), file) for name in _WITHOUT_IMAGE}
    for name in ("id", "split"):
        if columns[name].null_count:
            raise DataError(f"{file}: expected a value in every row of {name}, got {columns[name].null_count} nulls")
    return pa.table(columns), pictures


def _column(table: Any, field: Any, file: str) -> Any:
    if field.name not in table.column_names:
        return pa.chunked_array([pa.nulls(table.num_rows, field.type)])
    column = table[field.name]
    try:
        if pa.types.is_floating(column.type):  # pandas keeps whole numbers with gaps as floats
            column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
        return column.cast(field.type)
    except pa.ArrowException as error:
        raise DataError(f"{file}: column {field.name}: expected {field.type}, got {column.type}") from error


def _check_ids(uri: str, table: Any) -> None:
    ids = table["id"]
    if pc.count_distinct(ids).as_py() < len(ids):
        twice = max(ids.value_counts().to_pylist(), key=lambda one: one["counts"])
        raise DataError(f"{uri}: expected every id once, got {twice['values']} {twice['counts']} times")


def _name(files: Sequence[str]) -> str:
    """Return what the file names have in common, without the name of a split."""
    stems = [_SPLIT_SUFFIX.sub("", PurePosixPath(file).stem) for file in files]
    common = _SPLIT_SUFFIX.sub("", os.path.commonprefix(stems)).rstrip("-_.")  # noqa: RUF071 (no paths)
    return common if len(common) > 2 or len(set(stems)) == 1 else PurePosixPath(files[0]).parent.name
