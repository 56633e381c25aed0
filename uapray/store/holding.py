"""Which objects of a store hold which steps, and what of each is to be read."""

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import quote, unquote

from uapray.errors import NotFoundError, StoreError
from uapray.objects import READ_THREADS, Objects
from uapray.store.files import read_steps
from uapray.store.schema import OF_CLASSIFIERS, PARTS

COMPACTED = "compacted-"
_TRIES = 8
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Holding:
    """One object and the steps it holds.

    Attributes:
        name: Key of the object.
        grid: Grid it belongs to.
        steps: Keys of its steps, with the number of rows of each if it was compacted, else with -1.
    """

    name: str
    grid: str
    steps: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Share:
    """What of an object is to be read: all its steps, or some of a compacted one."""

    holding: Holding
    wanted: frozenset[str]

    @property
    def whole(self) -> bool:
        """Whether that is all of it."""
        return len(self.wanted) == len(self.holding.steps)


@dataclass(frozen=True, slots=True)
class Finished:
    """The steps that are finished: rows of others are unseen, for not all of them may be written.

    Attributes:
        trials: (grid, key) of the rows of ``trials``, which are written after all other rows of their step.
        models: Keys of the trainings whose classifier stands, which is written after its rows.
    """

    trials: frozenset[tuple[str, str]]
    models: frozenset[str]

    def has(self, table: str, grid: str, key: str) -> bool:
        """Whether the step that wrote such an object is finished."""
        if table in PARTS:
            return (grid, key) in self.trials
        return table not in OF_CLASSIFIERS or key.partition("-")[0] in self.models


def part(name: str) -> str:
    """Return a name as one part of a key, escaped as Hive readers undo it."""
    if not name:
        raise StoreError("expected the name of a grid or step, got an empty one")
    return quote(name, safe=" ")


def folder(table: str, grid: str | None) -> str:
    """Return what the keys of a table's objects begin with, in one grid or in all."""
    return f"{table}/" if grid is None else f"{table}/grid={part(grid)}/"


def object_name(table: str, grid: str, key: str) -> str:
    """Return the key of the object that a step writes its rows to."""
    if key.startswith(COMPACTED):
        raise StoreError(f"step key {key!r}: expected one that does not begin with {COMPACTED!r}")
    return f"{folder(table, grid)}{part(key)}.parquet"


def holdings(objects: Objects, table: str, grid: str | None = None) -> list[Holding]:
    """Return the objects of a table, sorted by name.

    Raises:
        NotFoundError: If a compacted object went away meanwhile; then ask again.
    """
    names = [name for name in _listed(objects, folder(table, grid)) if _is_rows(name)]
    compacted = [name for name in names if _is_compacted(name)]
    with ThreadPoolExecutor(READ_THREADS) as threads:
        steps = dict(zip(compacted, threads.map(lambda name: read_steps(objects, name), compacted), strict=True))
    return [Holding(name, _grid(name), steps.get(name) or {unquote(_stem(name)): -1}) for name in names]


def finished(objects: Objects, tables: Iterable[str], trials: Iterable[Holding]) -> Finished:
    """Return the steps that are finished, as far as some tables need to know.

    To be asked before those are listed: then all rows of these steps are there.
    """
    models = objects.keys("models/") if OF_CLASSIFIERS.intersection(tables) else []
    return Finished(
        frozenset((one.grid, step) for one in trials for step in one.steps),
        frozenset(_stem(name) for name in models if name.endswith(".safetensors")),
    )


def shares(found: Iterable[Holding], wanted: Callable[[str, str], bool]) -> list[Share]:
    """Choose what to read so that each wanted step comes once, whatever objects hold it.

    Two grids may have run one step, an object may have been compacted and not be deleted yet, and two compactions
    may have folded the same: so the first grid has precedence, and in it the object with the most steps.

    Args:
        found: Objects of one table.
        wanted: Of grid and step key, whether the step is to be read.
    """
    chosen, seen = [], set[str]()
    for one in sorted(found, key=lambda one: (one.grid, -len(one.steps), one.name)):
        fresh = frozenset(step for step in one.steps if step not in seen and wanted(one.grid, step))
        seen |= fresh
        if fresh:
            chosen.append(Share(one, fresh))
    return chosen


def until_settled(read: Callable[[], T]) -> T:
    """Call again what found an object gone: a compaction has put a larger one in its place."""
    for _ in range(_TRIES - 1):
        with suppress(NotFoundError):
            return read()
    return read()


def _listed(objects: Objects, prefix: str) -> list[str]:
    """List until two listings name the same compacted objects.

    A listing is no snapshot: it may pass by a compacted object before that is there, and by the small ones when they
    are deleted. A small object that the first listing misses was deleted before the second one began; so the
    compacted one, which was there before, is in the second.
    """
    names = objects.keys(prefix)
    while True:
        again = objects.keys(prefix)
        if set(filter(_is_compacted, again)) == set(filter(_is_compacted, names)):
            return names
        names = again


def _is_rows(name: str) -> bool:
    parts = name.split("/")
    return len(parts) == 3 and parts[1].startswith("grid=") and parts[2].endswith(".parquet")


def _is_compacted(name: str) -> bool:
    return _is_rows(name) and _stem(name).startswith(COMPACTED)


def _grid(name: str) -> str:
    return unquote(name.split("/")[1].removeprefix("grid="))


def _stem(name: str) -> str:
    return name.rpartition("/")[2].rpartition(".")[0]
