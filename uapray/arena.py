"""A classifier on replicas with the images that they hold: where searches and judgements take place."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray

from uapray.attack.projection import mean_norm, order
from uapray.config import Threat
from uapray.data.images import ImageSet
from uapray.errors import DataError
from uapray.pool import Deck, ReplicaPool, in_turn, predicted
from uapray.rendering import Rendering


@dataclass(frozen=True, slots=True)
class Arena:
    """A classifier on replicas, with the image arrays that they hold.

    Attributes:
        pool: Replicas of the classifier.
        images: The image sets by the name the replicas know them under, which is their split.
        weight: Voice of the classifier in a search on several.
    """

    pool: ReplicaPool
    images: Mapping[str, ImageSet]
    weight: float = 1.0
    _clean: dict[tuple[str, Rendering | None, bytes | None], NDArray[np.float32]] = field(default_factory=dict)
    _norms: dict[tuple[str, str, int | None], float] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def clean(
        self, split: str, rendering: Rendering | None = None, among: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        """Return the classes predicted for the clean images, rendered or as they are; as ``clean_logits``."""
        return predicted(self.clean_logits(split, rendering, among))

    def clean_logits(
        self, split: str, rendering: Rendering | None = None, among: NDArray[np.int64] | None = None
    ) -> NDArray[np.float32]:
        """Return the logits ``(n, k)`` of the clean images, rendered or as they are; the replicas are asked once.

        Args:
            split: Name of the split.
            rendering: What the images go through before.
            among: Of these alone, int64 ``(n,)``; last bits depend on the company, so no others may come along.
        """
        if not len(self.images[split]):
            raise DataError(f"{split}: expected images, got none")
        key = split, rendering, None if among is None else among.tobytes()
        with self._lock:
            if key not in self._clean:
                rows = np.arange(len(self.images[split])) if among is None else among
                self._clean[key] = self.pool.logits(None, in_turn(split, rows), rendering)
            return self._clean[key]

    def mean_norm(
        self, split: str, norm: str, *, channels: int | None = None, rows: NDArray[np.int64] | None = None
    ) -> float:
        """Return the mean norm of a split's images, pixel units; that of all is computed once.

        Args:
            split: Name of the split.
            norm: ``l2`` or ``linf``.
            channels: The first so many alone; None: all.
            rows: Of the images that count, int64 ``(n,)``; None: all.
        """
        images = self.images[split].images[..., :channels]
        if not len(images):
            raise DataError(f"{split}: expected images, got none")
        if rows is not None:
            return _mean_norm(images, rows, order(norm))
        key = split, norm, channels
        with self._lock:
            if key not in self._norms:
                self._norms[key] = _mean_norm(images, np.arange(len(images)), order(norm))
            return self._norms[key]

    def deck(self, split: str, rows: NDArray[np.int64], among: NDArray[np.int64] | None = None) -> Deck:
        """Return some images of a split with their clean predictions; ``among`` has them all (``clean_logits``)."""
        clean = self.clean(split, among=among)
        return Deck(split, rows, clean[rows if among is None else np.searchsorted(among, rows)])


def radius(arena: Arena, split: str, threat: Threat, rows: NDArray[np.int64] | None = None) -> float:
    """Return xi in pixel units: as given, or zeta times the mean norm of images (Hirano et al. 2021).

    Args:
        arena: Where the images are.
        split: Whose images; ``Threat.xi_from`` says which of their channels.
        threat: Norm and size.
        rows: Of the images that count, int64 ``(n,)``; None: all.
    """
    if threat.xi is not None:
        return threat.xi
    assert threat.zeta is not None
    channels = 1 if threat.xi_from == "first-channel" else None
    return threat.zeta * arena.mean_norm(split, threat.norm, channels=channels, rows=rows)


def _mean_norm(images: NDArray[np.uint8], rows: NDArray[np.int64], p: float) -> float:
    """Return the mean norm of some images, without copying them all at once."""
    parts = (torch.from_numpy(images[rows[start : start + 256]]) for start in range(0, len(rows), 256))
    return sum(len(part) * mean_norm(part, p=p) for part in parts) / len(rows)
