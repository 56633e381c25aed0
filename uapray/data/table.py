"""The data set file: its columns, read and checked, named and written."""

import io
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from uapray.errors import DataError
from uapray.objects import expand_uri, read_uri

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
MOST_CLASSES = 10_000  # a larger label is a mistake, not a class
_SPLIT_SUFFIX = re.compile(r"[-_.](train|test|val)$")


def table_of(columns: Mapping[str, Sequence[Any]]) -> Any:
    """Return a table of the columns of `SCHEMA`, one value an image."""
    return pa.table({name: pa.array(columns[name], SCHEMA.field(name).type) for name in SCHEMA.names}, SCHEMA)


def read_data_files(uri: str) -> tuple[str, Any]:
    """Return name and table of the data set that a path, URI, folder or pattern means, checked.

    The columns of `SCHEMA` come first, in its types; those a file leaves out are null; further ones follow.

    Raises:
        DataError: If a file is no Parquet, lacks a column, or ids or class names contradict each other.
        StoreError: If there is no file, or it cannot be read.
    """
    files = expand_uri(uri)
    table = pa.concat_tables([_read(file) for file in files], promote_options="permissive")
    if table.num_rows == 0:
        raise DataError(f"{uri}: expected images, got an empty table")
    _check_ids(uri, table)
    return _name(files), table


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


def _read(file: str) -> Any:
    try:
        table = pq.read_table(pa.BufferReader(read_uri(file)))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file}: expected a Parquet file, got one that cannot be read: {error}") from error
    if "id" not in table.column_names and "filename" in table.column_names:
        table = table.rename_columns(["id" if c == "filename" else c for c in table.column_names])
    missing = [name for name in _REQUIRED if name not in table.column_names]
    if missing:
        came = ", ".join(table.column_names)
        raise DataError(f"{file}: expected the columns {', '.join(_REQUIRED)}, got {came}; import it first")
    columns = {field.name: _column(table, field, file) for field in SCHEMA}
    for name in _REQUIRED:
        if columns[name].null_count:
            raise DataError(f"{file}: expected a value in every row of {name}, got {columns[name].null_count} nulls")
    others = {name: table[name] for name in table.column_names if name not in columns}
    return pa.table(columns | others)


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
    ids = table["id"].to_pylist()
    if len(set(ids)) < len(ids):
        twice, times = Counter(ids).most_common(1)[0]
        raise DataError(f"{uri}: expected every id once, got {twice} {times} times")


def _name(files: Sequence[str]) -> str:
    """Return what the file names have in common, without the name of a split."""
    stems = [_SPLIT_SUFFIX.sub("", PurePosixPath(file).stem) for file in files]
    common = _SPLIT_SUFFIX.sub("", os.path.commonprefix(stems)).rstrip("-_.")  # noqa: RUF071 (no paths)
    return common if len(common) > 2 or len(set(stems)) == 1 else PurePosixPath(files[0]).parent.name
