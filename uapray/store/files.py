"""Rows as the bytes of one Parquet file, and what its end says: version and steps."""

import io
import json
import re
from collections.abc import Mapping, Set

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from uapray.errors import StoreError
from uapray.objects import Objects
from uapray.store.schema import SCHEMA_VERSION

VERSION_KEY = "uapray_schema"
_STEPS = "uapray_steps"
_END_BYTES = 64 * 2**10
_MAGIC = b"PAR1"
_ROW_GROUP_ROWS = 128 * 2**10


def encode(table: pa.Table, steps: Mapping[str, int] | None = None) -> bytes:
    """Return a table as a Parquet file, each page with a checksum.

    Args:
        table: Rows of one step or of many.
        steps: Of many: how many rows belong to each, in their order.
    """
    body = io.BytesIO()
    with pq.ParquetWriter(body, table.schema, compression="zstd", write_page_checksum=True) as writer:
        writer.write_table(table, row_group_size=_ROW_GROUP_ROWS)
        if steps is not None:
            writer.add_key_value_metadata({_STEPS: json.dumps(steps, separators=(",", ":"))})
    return body.getvalue()


def decode(body: bytes, uri: str) -> pa.Table:
    """Return the rows of a file.

    Raises:
        StoreError: If it is damaged, or of a later version.
    """
    try:
        return pq.read_table(pa.BufferReader(whole(body, uri)), page_checksum_verification=True)
    except (pa.ArrowInvalid, OSError) as error:
        raise _damaged(uri) from error


def whole(body: bytes, uri: str) -> pa.Buffer:
    """Refuse a file that is damaged or of a later version by its name: a scan itself would not say which it was."""
    buffer = pa.py_buffer(body)
    _notes(buffer, uri)
    return buffer


def only(body: bytes, steps: Mapping[str, int], wanted: Set[str], uri: str) -> bytes:
    """Return a file with the rows of some of its steps."""
    kept = np.repeat([step in wanted for step in steps], list(steps.values()))
    return encode(decode(body, uri).filter(pa.array(kept, pa.bool_())))


def read_steps(objects: Objects, key: str) -> dict[str, int]:
    """Return the steps of a compacted object and how many rows each has; only its end is fetched.

    Raises:
        NotFoundError: If it is not there.
        StoreError: If it is damaged, of a later version or does not say what it holds.
    """
    uri = f"{objects.uri}/{key}"
    end = objects.read_end(key, _END_BYTES)
    size = int.from_bytes(end[-8:-4], "little") + 8
    if size > len(end):
        end = objects.read_end(key, size)
    notes = _notes(pa.py_buffer(_MAGIC + end[-size:]), uri)
    try:
        return {str(step): int(rows) for step, rows in json.loads(notes[_STEPS.encode()]).items()}
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise StoreError(f"{uri}: expected a compacted object that names its steps, found none") from error


def check_version(version: str, uri: str) -> None:
    """Refuse what a later uapray wrote in another way; columns that were added are no other way.

    Raises:
        StoreError: It says which version is known.
    """
    known = SCHEMA_VERSION.partition(".")[0]
    if not re.fullmatch(r"\d+(\.\d+)*", version) or int(version.partition(".")[0]) > int(known):
        raise StoreError(f"{uri}: expected schema version {known} or earlier, got {version}; a newer uapray wrote it")


def _notes(file: pa.Buffer, uri: str) -> dict[bytes, bytes]:
    """Return what the end of a file says of it; one that names no version is of the first."""
    try:
        notes: dict[bytes, bytes] = pq.read_metadata(pa.BufferReader(file)).metadata or {}
    except (pa.ArrowInvalid, OSError) as error:
        raise _damaged(uri) from error
    check_version(notes.get(VERSION_KEY.encode(), b"1").decode("utf-8", "replace"), uri)
    return notes


def _damaged(uri: str) -> StoreError:
    return StoreError(f"{uri}: damaged, no whole Parquet file; delete it and run its grid again")
