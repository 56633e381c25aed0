"""Notes of the runs that fill a store: what is under way, and what is still to do."""

import json
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
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
        done: Trials finished.
        failed: Trials failed for good.
        image_gradients: Of searches, since it began.
        image_queries: Of searches, since it began.
        store_errors: Times that the store did not take what was kept of a search.
        seconds: Since it began.
        replicas: What there was of replicas when it last looked, by the name of the metric.
        ended: Whether it came to an end, of whatever kind but a kill.
        at: When it said so, ISO 8601, UTC.
        part: Which part of the grid it runs, from 1.
        of: Of how many.
    """

    grid: str
    run: str
    to_do: int
    under_way: int
    ended: bool
    at: str
    done: int = 0
    failed: int = 0
    image_gradients: int = 0
    image_queries: int = 0
    store_errors: int = 0
    seconds: float = 0.0
    replicas: Mapping[str, float] = field(default_factory=dict)
    part: int = 1
    of: int = 1

    def running(self, now: datetime) -> bool:
        """Return whether the run goes on: it did not end, and was heard of lately."""
        return not self.ended and now - datetime.fromisoformat(self.at) < timedelta(seconds=3 * RENEWED_S)

    def totals(self) -> dict[str, float]:
        """Return what it says by the names of the metrics."""
        return {
            "uapray_image_gradients": self.image_gradients,
            "uapray_image_queries": self.image_queries,
            "uapray_trials_done": self.done,
            "uapray_trials_failed": self.failed,
            "uapray_trials_under_way": self.under_way,
            "uapray_trials_to_do": self.to_do,
            "uapray_store_errors": self.store_errors,
            **self.replicas,
        }


class Noting:
    """A run's note, kept up to date by whoever counts; threads may share it."""

    def __init__(self, objects: Objects, grid: str, to_do: int, share: tuple[int, int] = (1, 1)) -> None:
        self._objects, self._lock = objects, Lock()
        part, of = share
        self._note = RunNote(grid, uuid.uuid4().hex[:12], to_do, 0, ended=False, at="", part=part, of=of)
        self._begun = time.monotonic()

    def begun(self) -> None:
        """Count one trial more under way."""
        with self._lock:
            self._note = replace(self._note, under_way=self._note.under_way + 1)

    def done(self) -> None:
        """Count one trial less under way and to do."""
        with self._lock:
            now = self._note
            self._note = replace(now, under_way=now.under_way - 1, to_do=now.to_do - 1, done=now.done + 1)

    def failed(self, trials: int, *, under_way: int = 0) -> None:
        """Count trials that failed for good, some of which were under way."""
        with self._lock:
            now = self._note
            left, failed = now.to_do - trials, now.failed + trials
            self._note = replace(now, under_way=now.under_way - under_way, to_do=left, failed=failed)

    def spent(self, image_gradients: int, image_queries: int) -> None:
        """Count what searches have spent."""
        with self._lock:
            gradients, queries = self._note.image_gradients + image_gradients, self._note.image_queries + image_queries
            self._note = replace(self._note, image_gradients=gradients, image_queries=queries)

    def unkept(self) -> None:
        """Count a write that the store did not take."""
        with self._lock:
            self._note = replace(self._note, store_errors=self._note.store_errors + 1)

    def replicas(self, totals: Mapping[str, float]) -> None:
        """Say what there is of replicas."""
        with self._lock:
            self._note = replace(self._note, replicas=dict(totals))

    @property
    def now(self) -> RunNote:
        """What the note would say now."""
        with self._lock:
            return replace(self._note, seconds=time.monotonic() - self._begun)

    def write(self, *, ended: bool) -> None:
        """Put the note into the store. It is no result: where that fails, the run goes on."""
        note = replace(self.now, ended=ended, at=datetime.now(UTC).isoformat())
        if ended:
            note = replace(note, under_way=0)
        with suppress(StoreError):
            self._objects.write(f"{_FOLDER}{note.run}.json", json.dumps(asdict(note)).encode())


@contextmanager
def noting(objects: Objects, grid: str, to_do: int, share: tuple[int, int] = (1, 1)) -> Iterator[Noting]:
    """Keep a note of a run in the store inside the block, renewed every `RENEWED_S` seconds."""
    note, over = Noting(objects, grid, to_do, share), Event()

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


def latest_notes(objects: Objects, now: datetime) -> list[RunNote]:
    """Return the notes that say where each grid stands, by grid and part.

    Of a grid that several drivers share there is one a part, as it was divided last; of several runs of the same part
    the one that goes on, else the latest.
    """
    notes = run_notes(objects)
    divided = {note.grid: note.of for note in notes}
    told = {
        (note.grid, note.part): note
        for note in sorted(notes, key=lambda note: (note.running(now), note.at))
        if note.of == divided[note.grid]
    }
    return [note for _, note in sorted(told.items())]
