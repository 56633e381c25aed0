"""Keeps a search under way in the store, so that whatever dies costs minutes and no bit."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace

from uapray.coordinator import Measurement, Snapshot
from uapray.errors import NotFoundError, StoreError, TrialError
from uapray.objects import Objects
from uapray.remembering import RememberingPool
from uapray.saved import Progress, pack, unpack


def state_key(trial_id: str) -> str:
    """Return where the search of a trial is kept while it is under way."""
    return f"states/{trial_id}.safetensors"


class Keeper:
    """Writes how far a search has come every so often; one object a search, overwritten whole.

    Attributes:
        before: How far it had come when it was interrupted; nothing of it if it begins.
    """

    def __init__(
        self,
        objects: Objects,
        trial_id: str,
        origin: Mapping[str, str],
        every_s: float,
        unkept: Callable[[], None] = lambda: None,
    ) -> None:
        """Look for what an interrupted run has left.

        Args:
            objects: The store.
            trial_id: Of the search.
            origin: What it may be continued under; what was kept under another origin is not used.
            every_s: Seconds between two writes.
            unkept: Called when the store did not take a write.

        Raises:
            StoreError: If what was left is damaged, or the store does not answer.
        """
        self._objects, self._key, self._origin, self._every_s = objects, state_key(trial_id), origin, every_s
        self.before = self._left() or Progress()
        self._pool: RememberingPool | None = None
        self._snapshot = self.before.snapshot
        self._history: list[Measurement] = list(self.before.history) if self._snapshot is not None else []
        self._begun = time.monotonic() - self.before.seconds
        self._written = time.monotonic()
        self._news = False
        self._unkept = unkept

    @property
    def spent(self) -> tuple[int, int]:
        """Image-gradients and image-queries of the search, those before interruptions included."""
        now = self._snapshot
        return (0, 0) if now is None else (now.image_gradients, now.image_queries)

    @property
    def seconds(self) -> float:
        """Wall time of the search, that before interruptions included."""
        return time.monotonic() - self._begun

    def remember(self, pool: RememberingPool) -> None:
        """Keep the answers of a pool instead of snapshots."""
        self._pool = pool

    def watch(self, snapshot: Snapshot) -> None:
        """Take in where the search stands, and write it if it is time."""
        self._snapshot, self._news = snapshot, True
        self._history.extend(snapshot.measured)
        if time.monotonic() - self._written >= self._every_s:
            self._try_to_write()

    def _try_to_write(self) -> None:
        try:
            self.write()
        except StoreError:  # a convenience: the results have to be written, this may fail
            self._unkept()

    def write(self) -> None:
        """Write how far the search has come."""
        progress = Progress(history=tuple(self._history), seconds=self.seconds)
        if self._pool is not None:
            progress = replace(progress, answers=self._pool.answers)
        else:
            progress = replace(progress, snapshot=self._snapshot)
        self._objects.write(self._key, pack(progress, self._origin))
        self._written, self._news = time.monotonic(), False

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Write once more if the block is interrupted; a search that fails for good is forgotten, to begin anew."""
        try:
            yield
        except TrialError:
            self.forget()
            raise
        except BaseException:
            if self._news:
                self._try_to_write()
            raise

    def forget(self) -> None:
        """Take away what is kept: the result stands."""
        with suppress(StoreError):
            self._objects.delete(self._key)

    def _left(self) -> Progress | None:
        try:
            body = self._objects.read(self._key)
        except NotFoundError:
            return None
        return unpack(body, self._origin, name=f"{self._objects.uri}/{self._key}")
