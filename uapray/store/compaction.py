"""Folding the many small objects of a table into few large ones, beside readers and writers and through kills.

A compacted object says itself, in its Parquet metadata, which steps it holds; so it stands for the small ones from the
moment it is there, and to delete those is tidying up. Nothing is deleted whose steps are not all in objects that have
precedence over it (`uapray.store.holding.shares`), so that two compactions at once cannot delete each other's.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import pyarrow as pa

from uapray.errors import StoreError
from uapray.objects import READ_THREADS, Objects, read_all
from uapray.records import key_of
from uapray.store.files import VERSION_KEY, decode, encode, only
from uapray.store.holding import (
    COMPACTED,
    Finished,
    Holding,
    Share,
    finished,
    folder,
    holdings,
    shares,
    until_settled,
)
from uapray.store.schema import PARTS, TABLES

TARGET_BYTES = 128 * 2**20
_READ_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Tally:
    """What a compaction did to one table.

    Attributes:
        table: Its name.
        steps: Steps that its objects hold, finished or not.
        before: Objects before.
        after: Objects after.
    """

    table: str
    steps: int
    before: int
    after: int


def compact(objects: Objects, grid: str | None = None, *, target_bytes: int = TARGET_BYTES) -> Iterator[Tally]:
    """Fold the small objects of each table and grid, table by table; every row is kept.

    Compacted objects are not folded again, but where two compactions at once have folded the same steps. What belongs
    to a step that is not finished stays as it is.

    Args:
        objects: The store.
        grid: One grid alone; None: all.
        target_bytes: About how many bytes of rows, before they are compressed, an object is to hold.

    Raises:
        StoreError: If the store cannot be read or written, or an object is damaged.
    """
    for table in TABLES:
        before = after = until_settled(partial(holdings, objects, table, grid))
        while len(after) > 1 and until_settled(partial(_fold_once, objects, table, grid, target_bytes)):
            after = until_settled(partial(holdings, objects, table, grid))
        yield Tally(table, len({(one.grid, step) for one in after for step in one.steps}), len(before), len(after))


def _fold_once(objects: Objects, table: str, grid: str | None, target_bytes: int) -> bool:
    """Delete what is held elsewhere, and fold once; whether there was anything to do."""
    done = _finished(objects, table, grid)
    found = holdings(objects, table, grid)
    idle = True
    for _, of_grid in groupby(found, key=lambda one: one.grid):  # they are sorted by name, and so by grid
        ones = list(of_grid)
        needed = {share.holding.name for share in shares(ones, lambda _grid, _step: True)}
        if spare := [one.name for one in ones if one.name not in needed]:
            idle = False
            with ThreadPoolExecutor(READ_THREADS) as threads:
                list(threads.map(objects.delete, spare))
        for group in _groups(ones, needed, partial(done.has, table)):
            idle &= not _fold(objects, table, group, target_bytes)
    return not idle


def _finished(objects: Objects, table: str, grid: str | None) -> Finished:
    return finished(objects, [table], holdings(objects, "trials", grid) if table in PARTS else [])


def _groups(ones: Sequence[Holding], needed: set[str], has: Callable[[str, str], bool]) -> Iterator[list[Share]]:
    """Return what is to be folded of the objects of a grid: the small ones, and those that hold steps in common."""
    small = [Share(one, frozenset(one.steps)) for one in ones if one.name in needed and not _compacted(one)]
    yield [share for share in small if all(has(share.holding.grid, step) for step in share.wanted)]
    compacted = [one for one in ones if one.name in needed and _compacted(one)]
    holders: dict[str, list[str]] = defaultdict(list)
    for one in compacted:
        for step in one.steps:
            holders[step].append(one.name)
    common = {name for names in holders.values() if len(names) > 1 for name in names}
    yield shares((one for one in compacted if one.name in common), lambda _grid, _step: True)


def _fold(objects: Objects, table: str, group: Sequence[Share], target_bytes: int) -> bool:
    """Write the rows of some objects anew, those of equal columns together; whether there was anything to fold."""
    if len(group) < 2:
        return False
    mending = _compacted(group[0].holding)
    folds: dict[str, list[_Rows]] = {}
    sizes: Counter[str] = Counter()
    written = False
    for rows in _read(objects, group):
        kind = _columns(rows.table.schema)
        folds.setdefault(kind, []).append(rows)
        sizes[kind] += rows.size
        if not mending and sizes[kind] >= target_bytes:
            written |= _write(objects, table, folds.pop(kind))
            sizes[kind] = 0
    if mending and len(folds) > 1:  # only one object that holds them all has precedence over each; readers manage
        return False
    for fold in folds.values():
        written |= _write(objects, table, fold)
    return written


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows that go into a compacted object.

    Attributes:
        table: The rows.
        steps: How many belong to each step, in their order.
        grid: Grid they belong to.
        size: Bytes in memory.
    """

    table: pa.Table
    steps: dict[str, int]
    grid: str
    size: int


def _write(objects: Objects, table: str, fold: Sequence[_Rows]) -> bool:
    """Write a compacted object and read it back; whether there was more than one step to fold."""
    steps = {step: count for rows in fold for step, count in rows.steps.items()}
    if len(steps) < 2:
        return False
    key = key_of("compact", {"table": table, "grid": fold[0].grid, "steps": sorted(steps)})
    name = f"{folder(table, fold[0].grid)}{COMPACTED}{key}.parquet"
    schema = fold[0].table.schema  # of equal columns, but their descriptions may have been reworded
    body = encode(pa.concat_tables([rows.table.cast(schema) for rows in fold]).combine_chunks(), steps)
    objects.write(name, body)
    if objects.read(name) != body:
        raise StoreError(f"{objects.uri}/{name}: wrote {len(body)} bytes and read others back; nothing was deleted")
    return True


def _read(objects: Objects, group: Sequence[Share]) -> Iterator[_Rows]:
    for begin in range(0, len(group), _READ_AT_ONCE):
        some = group[begin : begin + _READ_AT_ONCE]
        for share, body in zip(some, read_all(objects, [share.holding.name for share in some]), strict=True):
            yield _rows(share, body, f"{objects.uri}/{share.holding.name}")


def _rows(share: Share, body: bytes, uri: str) -> _Rows:
    holding = share.holding
    if not _compacted(holding):
        table = decode(body, uri)
        return _Rows(table, dict.fromkeys(holding.steps, table.num_rows), holding.grid, table.nbytes)
    table = decode(only(body, holding.steps, share.wanted, uri), uri)
    steps = {step: count for step, count in holding.steps.items() if step in share.wanted}
    return _Rows(table, steps, holding.grid, table.nbytes)


def _columns(schema: pa.Schema) -> str:
    """Return what two files have in common that can be one: names, types and version."""
    version = (schema.metadata or {}).get(VERSION_KEY.encode(), b"1").decode()
    return "\n".join([version, *(f"{field.name}: {field.type} {field.nullable}" for field in schema)])


def _compacted(one: Holding) -> bool:
    return one.name.rpartition("/")[2].startswith(COMPACTED)


def grids(objects: Objects) -> set[str]:
    """Return the grids that have objects in a store."""
    return {one.grid for table in TABLES for one in until_settled(partial(holdings, objects, table))}
