"""SQL over the tables of a store, read-only, with DuckDB."""

import base64
import csv
import io
import json
import math
import re
from contextlib import suppress
from datetime import date, datetime, time
from decimal import Decimal
from itertools import count
from typing import Any, Literal

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from uapray.errors import QueryError
from uapray.store.results import Results
from uapray.store.schema import TABLES, with_grid

Format = Literal["table", "csv", "json", "parquet"]

_SHUT = {
    "enable_external_access": "false",
    "autoload_known_extensions": "false",
    "autoinstall_known_extensions": "false",
    "python_enable_replacements": "false",
}


def query(results: Results, sql: str) -> pa.Table:
    """Answer one SELECT (WITH, DESCRIBE, SUMMARIZE, SHOW TABLES) over the tables of `TABLES`.

    Only the tables that the statement names are read. SQL reaches nothing but them: no files, no network, no
    settings. Times are in UTC.

    Raises:
        QueryError: If it is no SQL, changes something, or names what is not there.
        StoreError: If the store cannot be read.
    """
    with duckdb.connect(config=_SHUT) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute("SET enable_progress_bar = false")  # it would print among the answers of a slow query
        connection.execute("SET lock_configuration = true")
        for table, schema in TABLES.items():
            connection.register(table, ds.dataset(with_grid(schema).empty_table()))
        try:
            _expect_reading(connection, sql)
            connection.sql(sql)  # binds against empty tables, so that a mistake costs no reading
            for table, rows in results.datasets(_named(sql)).items():
                connection.register(table, rows)
            return _tidy(connection.sql(sql).to_arrow_table())
        except duckdb.Error as error:
            raise QueryError(_explain(str(error), sql)) from error


def format_table(table: pa.Table, form: Format, width: int | None = None) -> bytes:
    """Write a table for people or programs.

    Args:
        table: Any table.
        form: ``table`` (boxes, UTF-8), ``csv``, ``json`` (a list of objects) or ``parquet``.
        width: Columns of the terminal, for ``table``; None: as wide as it needs.

    In ``csv`` and ``json`` times are ISO 8601, bytes base64, and what is not a number null.
    """
    match form:
        case "parquet":
            return _parquet(table)
        case "json":
            rows = [dict(zip(table.column_names, row, strict=True)) for row in _plain_rows(table)]
            return (json.dumps(rows, indent=1, ensure_ascii=False) + "\n").encode()
        case "csv":
            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(table.column_names)
            writer.writerows(map(_csv_cell, row) for row in _plain_rows(table))
            return text.getvalue().encode()
        case "table":
            return _boxes(table, width).encode()
    raise QueryError(f"format: expected table, csv, json or parquet, got {form!r}")


def _expect_reading(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    if not sql.isascii() and any("\ud800" <= sign <= "\udfff" for sign in sql):
        raise QueryError("expected SQL in UTF-8, got other bytes")
    statements = connection.extract_statements(sql)
    if len(statements) != 1:
        raise QueryError(f"expected one SQL statement, got {len(statements)}")
    if statements[0].type != duckdb.StatementType.SELECT:
        kind = statements[0].type.name
        raise QueryError(f"expected SELECT, WITH, DESCRIBE, SUMMARIZE or SHOW TABLES, got {kind}: read-only")


def _named(sql: str) -> list[str]:
    """Return the tables that a statement names: those that DuckDB misses where there are none."""
    with duckdb.connect(config=_SHUT) as nothing:
        try:
            names = {name.casefold() for name in nothing.get_table_names(sql)}
        except duckdb.Error:  # it cannot tell without their columns; then those that occur as words
            names = set(re.findall(r"\w+", sql.casefold()))
    return [table for table in TABLES if table in names]


def _explain(said: str, sql: str) -> str:
    """Return DuckDB's first line, and what there is if a name is unknown."""
    first = said.splitlines()[0] if said else "DuckDB gave no reason"
    if "Table with name" in first:
        return f"{first}\ntables: {', '.join(TABLES)}"
    if "olumn" in first and ("not found" in first or "does not have" in first):
        columns = [f"{table}: {', '.join(with_grid(TABLES[table]).names)}" for table in _named(sql)]
        return "\n".join([first, *columns])
    return first


def _tidy(table: pa.Table) -> pa.Table:
    """Give every column a name of its own, and make integers of DuckDB's 128-bit sums where they fit."""
    columns: dict[str, pa.ChunkedArray] = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        if column.type == pa.decimal128(38, 0):  # what Arrow sees of a 128-bit integer
            with suppress(pa.ArrowInvalid):
                column = column.cast(pa.int64())
        again = (f"{name}_{number}" for number in count(1))
        columns[name if name not in columns else next(free for free in again if free not in columns)] = column
    return pa.table(columns)


def _plain_rows(table: pa.Table) -> list[tuple[Any, ...]]:
    return list(zip(*map(_plain_column, table.column_names, table.columns), strict=True))


def _plain_column(name: str, column: pa.ChunkedArray) -> list[Any]:
    try:
        return [_plain(value) for value in column.to_pylist()]
    except (OverflowError, ValueError) as error:  # a date beyond the year 9999
        raise QueryError(f"{name}: expected values that Python knows, cast it to VARCHAR: {error}") from error


def _plain(value: Any) -> Any:
    """Return a value as JSON knows it."""
    match value:
        case float() if not math.isfinite(value):
            return None
        case datetime() | date() | time():
            return value.isoformat()
        case bytes():
            return base64.b64encode(value).decode()
        case Decimal():
            return int(value) if value == value.to_integral_value() else float(value)
        case list() | tuple():
            return [_plain(part) for part in value]
        case dict():
            return {str(name): _plain(part) for name, part in value.items()}
        case None | bool() | int() | float() | str():
            return value
    return str(value)


def _parquet(table: pa.Table) -> bytes:
    body = io.BytesIO()
    try:
        pq.write_table(table, body, compression="zstd")
    except pa.ArrowNotImplementedError as error:
        raise QueryError(f"Parquet has no such type, cast it to another: {error}") from error
    return body.getvalue()


def _csv_cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value


def _boxes(table: pa.Table, width: int | None) -> str:
    from rich import box
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    boxes = Table(box=box.ROUNDED)
    for field in table.schema:
        number = pa.types.is_integer(field.type) or pa.types.is_floating(field.type)
        boxes.add_column(Text(field.name), justify="right" if number else "left", overflow="fold")
    for row in _plain_rows(table):
        boxes.add_row(*(Text(_shown(value)) for value in row))
    text = io.StringIO()
    console = Console(file=text, width=width or 10_000, color_system=None)
    if width is None:
        console.width = max(20, Measurement.get(console, console.options, boxes).maximum)
    console.print(boxes)
    return text.getvalue()


def _shown(value: Any) -> str:
    match value:
        case None:
            return ""
        case float():
            return f"{value:.6g}"
        case list() | dict():
            return json.dumps(value, ensure_ascii=False)
    return str(value)
