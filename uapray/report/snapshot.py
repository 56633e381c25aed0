"""What a report reads, read once and held in memory: every part of the page then speaks of the same rows."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from uapray.errors import NotFoundError, StoreError
from uapray.store.results import Results
from uapray.store.schema import OF_CLASSIFIERS

TABLES_READ = (
    "trials",
    "history",
    "flows",
    "examples",
    "controls",
    "curves",
    "classes",
    "clinical",
    "hardening",
    "failures",
)


@dataclass(frozen=True, eq=False, slots=True)
class Held:
    """Objects in memory, of another store; nothing can be written."""

    uri: str
    bodies: dict[str, bytes]

    def read(self, key: str) -> bytes:
        """Return the whole object."""
        if key not in self.bodies:
            raise NotFoundError(f"{self.uri}/{key}: not there")
        return self.bodies[key]

    def read_end(self, key: str, size: int) -> bytes:
        """Return the last bytes of the object."""
        return self.read(key)[-size:] if size else b""

    def keys(self, prefix: str = "") -> list[str]:
        """Return the keys that begin with ``prefix``, sorted."""
        return sorted(key for key in self.bodies if key.startswith(prefix))

    def exists(self, key: str) -> bool:
        """Whether the object is there."""
        return key in self.bodies

    def write(self, key: str, body: bytes) -> None:
        """Refuse."""
        raise StoreError(f"{self.uri}/{key}: {len(body)} bytes not written, this is a copy for reading")

    def write_once(self, key: str, body: bytes) -> bool:
        """Refuse."""
        raise StoreError(f"{self.uri}/{key}: {len(body)} bytes not written, this is a copy for reading")

    def delete(self, key: str) -> None:
        """Refuse."""
        raise StoreError(f"{self.uri}/{key}: not deleted, this is a copy for reading")

    def check(self) -> None:
        """Refuse."""
        raise StoreError(f"{self.uri}: this is a copy for reading")


def snapshot(results: Results) -> Results:
    """Return the tables that a report needs as they are now, one object a table and grid.

    A store has one object a step; a page that asks eight times would fetch thousands of them eight times.
    """
    tables = results.tables(TABLES_READ)
    bodies = {key: body for table, rows in tables.items() for key, body in _folded(table, rows)}
    return Results(Held(results.objects.uri, bodies))


def _folded(table: str, rows: pa.Table) -> Iterator[tuple[str, bytes]]:
    for grid in pc.unique(rows["grid"]).to_pylist():
        body = io.BytesIO()
        of_grid = rows.filter(pc.equal(rows["grid"], grid)).drop_columns("grid")
        pq.write_table(of_grid, body, compression="none")
        name = quote(grid, safe=" ")
        step = f"all of {name}"
        yield f"{table}/grid={name}/{step}.parquet", body.getvalue()
        if table in OF_CLASSIFIERS:  # what ends such a step is the classifier that its key begins with
            yield f"models/{step.partition('-')[0]}.safetensors", b""
