"""Notes of the runs that fill a store: what is under way, and what is still to do."""

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from threading import Event, Lock, Thread

from uapray.errors import StoreError
from uapray.objects import Objects, read_all

RENEWED_S = 20.0
_FOLDER = "runs/"


@dataclass(frozen=True, slots=True)
class RunNote:
    """Where a run stood when it last said so.

    Attributes:
        grid: The grid it runs.
        run: Its own name.
        to_do: Trials neither finished nor failed, those under way included.
        under_way: Trials under way.
        ended: Whether it came to an end, of whatever kind but a kill.
        at: When it said so, ISO 8601, UTC.
    """

    grid: str
    run: str
    to_do: int
    under_way: int
    ended: bool
    at: str

    def running(self, now: datetime) -> bool:
        """Return whether the run goes on: it did not end, and was heard of lately."""
        return not self.ended and now - datetime.fromisoformat(self.at) < timedelta(seconds=3 * RENEWED_S)


class Noting:
    """A run's note, kept up to date by whoever counts; threads may share it."""

    def __init__(self, objects: Objects, grid: str, to_do: int) -> None:
        self._objects, self._lock = objects, Lock()
        self._note = RunNote(grid, uuid.uuid4().hex[:12], to_do, 0, ended=False, at="")

    def begun(self) -> None:
        """Count one trial more under way."""
        with self._lock:
            self._note = replace(self._note, under_way=self._note.under_way + 1)

    def done(self) -> None:
        """Count one trial less under way and to do."""
        with self._lock:
            self._note = replace(self._note, under_way=self._note.under_way - 1, to_do=self._note.to_do - 1)

    def write(self, *, ended: bool) -> None:
        """Put the note into the store. It is no result: where that fails, the run goes on."""
        with self._lock:
            note = replace(self._note, ended=ended, at=datetime.now(UTC).isoformat())
        if ended:
            note = replace(note, under_way=0)
        with suppress(StoreError):
            self._objects.write(f"{_FOLDER}{note.run}.json", json.dumps(asdict(note)).encode())


@contextmanager
def noting(objects: Objects, grid: str, to_do: int) -> Iterator[Noting]:
    """Keep a note of a run in the store inside the block, renewed every `RENEWED_S` seconds."""
    note, over = Noting(objects, grid, to_do), Event()

    def renew() -> None:
        while not over.wait(RENEWED_S):
            note.write(ended=False)

    note.write(ended=False)
    renewing = Thread(target=renew, daemon=True)
    renewing.start()
    try:
        yield note
    finally:
        over.set()
        renewing.join()
        note.write(ended=True)


def run_notes(objects: Objects) -> list[RunNote]:
    """Return the notes of all runs, the latest last; one that cannot be read is left out."""
    notes = []
    for body in read_all(objects, objects.keys(_FOLDER)):
        with suppress(ValueError, TypeError):
            notes.append(RunNote(**json.loads(body)))
    return sorted(notes, key=lambda note: note.at)
