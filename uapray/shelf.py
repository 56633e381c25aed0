"""What the groups of a run share: each data set is decoded once, for all classifiers, and each of these made once."""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock

from uapray.data.images import ImageSet
from uapray.resources import Held, Resources, hold
from uapray.sources import Source


@dataclass(slots=True)
class _Place:
    lock: Lock = field(default_factory=Lock)
    held: Held | None = None


class Shelf:
    """Where the groups of a run, which threads may share, take their images from."""

    def __init__(
        self, resources: Resources, wanted: Iterable[str], decoded: dict[str, dict[str, ImageSet]] | None = None
    ) -> None:
        """Prepare for as many readers.

        Args:
            resources: Where replicas will want the images.
            wanted: Key of the data set of each group.
            decoded: Images that are decoded already, by the key of their data set; taken out when they are wanted.
        """
        self._decoded = {} if decoded is None else decoded
        self._resources = resources
        self._left = Counter(wanted)
        self._places = {key: _Place() for key in self._left}
        self._lock = Lock()
        self._makers: dict[str, Lock] = {}

    @contextmanager
    def making(self, classifier: str) -> Iterator[None]:
        """Let one group at a time get a classifier, by its key: others that want the same find it made."""
        with self._lock:
            maker = self._makers.setdefault(classifier, Lock())
        with maker:
            yield

    @contextmanager
    def taken(self, source: Source, splits: Iterable[str]) -> Iterator[Held]:
        """Provide the splits of a data set inside the block; one group less wants it afterwards."""
        place = self._places[source.key]
        try:
            with place.lock:
                if place.held is None:
                    place.held = hold(self._images(source, splits), self._resources)
                held = place.held
            yield held
        finally:
            with self._lock:
                self._left[source.key] -= 1
                if not self._left[source.key]:
                    place.held = None

    def _images(self, source: Source, splits: Iterable[str]) -> dict[str, ImageSet]:
        ready = self._decoded.pop(source.key, {})
        return {split: ready[split] if split in ready else source.images(split) for split in splits}
