"""The one seam between mathematics and machines."""

from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from uapray.ascent import Ascending, Ascent
from uapray.attack.control import Draw
from uapray.attack.objective import Objective
from uapray.attack.partial import PartialUpdate, add_in_order
from uapray.attack.rules import State
from uapray.attack.sequential import Ahead, Visit, Visiting
from uapray.errors import TrialError
from uapray.measures import spread
from uapray.rendering import Rendering
from uapray.replica import Batch, Drawn, Replica

FORWARD_BATCH_SIZE = 32


class ReplicaPool(Protocol):
    """Replicas of one model: LocalPool in this process, RayPool on a cluster. Threads may share a pool."""

    @property
    def size(self) -> int:
        """How many replicas there are."""
        ...

    @property
    def share(self) -> int:
        """How many of them are for who asks now, beside the others who ask; one at least."""
        ...

    def gradient(
        self, v: Tensor, batches: Sequence[Batch], objective: Objective, along: Tensor | None = None
    ) -> PartialUpdate:
        """Return the gradients of all batches, added in the order of the batches."""
        ...

    def logits(
        self, v: Tensor | None, batches: Sequence[Batch], rendering: Rendering | None = None
    ) -> NDArray[np.float32]:
        """Return the logits ``(n, k)`` of all images, in the order of the batches."""
        ...

    def likeness(self, v: Tensor, batches: Sequence[Batch]) -> NDArray[np.float32]:
        """Return how like its clean self each perturbed image is, ``(n, 2)``; see ``measures.likeness``."""
        ...

    def drawn(self, v: Tensor, draws: Sequence[Draw], batches: Sequence[Batch]) -> list[Drawn]:
        """Draw controls of a perturbation on the replicas; return what is said of all images with each."""
        ...

    def ascend(self, state: State, images: Batch, first: int, how: Ascending) -> Ascent:
        """Make rounds, as many as one replica makes in a few seconds and one at least; see ``Replica.ascend``."""
        ...

    def visit(self, v: Tensor, batch: Batch, how: Visiting, ahead: Ahead) -> Visit:
        """Visit images one after another, in the order of the batch, on one replica."""
        ...

    def population(self, vs: Sequence[Tensor], batches: Sequence[Batch]) -> list[NDArray[np.float32]]:
        """Return for each perturbation what ``logits`` would; each pair of it and a batch is dealt by itself."""
        ...


class LocalPool:
    """One replica in this process: the real thing without a cluster."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._one_at_a_time = Lock()

    @property
    def size(self) -> int:
        """One."""
        return 1

    @property
    def share(self) -> int:
        """One."""
        return 1

    def gradient(
        self, v: Tensor, batches: Sequence[Batch], objective: Objective, along: Tensor | None = None
    ) -> PartialUpdate:
        """Return the gradients of all batches, added in the order of the batches."""
        with self._one_at_a_time:
            towards = None if along is None else along.numpy()
            return add_in_order(self._replica.gradient(v.numpy(), batches, objective, towards))

    def logits(
        self, v: Tensor | None, batches: Sequence[Batch], rendering: Rendering | None = None
    ) -> NDArray[np.float32]:
        """Return the logits ``(n, k)`` of all images, in the order of the batches."""
        with self._one_at_a_time:
            return np.concatenate(self._replica.logits(None if v is None else v.numpy(), batches, rendering))

    def likeness(self, v: Tensor, batches: Sequence[Batch]) -> NDArray[np.float32]:
        """Return how like its clean self each perturbed image is, ``(n, 2)``."""
        with self._one_at_a_time:
            return np.concatenate(self._replica.likeness(v.numpy(), batches))

    def drawn(self, v: Tensor, draws: Sequence[Draw], batches: Sequence[Batch]) -> list[Drawn]:
        """Draw controls of a perturbation; return what is said of all images with each."""
        with self._one_at_a_time:
            return self._replica.drawn(v.numpy(), draws, batches)

    def ascend(self, state: State, images: Batch, first: int, how: Ascending) -> Ascent:
        """Make rounds, as many as take a few seconds and one at least."""
        with self._one_at_a_time:
            return self._replica.ascend(state, images, first, how)

    def visit(self, v: Tensor, batch: Batch, how: Visiting, ahead: Ahead) -> Visit:
        """Visit images one after another, in the order of the batch, on one replica."""
        with self._one_at_a_time:
            return self._replica.visit(v.numpy(), batch, how, ahead)

    def population(self, vs: Sequence[Tensor], batches: Sequence[Batch]) -> list[NDArray[np.float32]]:
        """Return for each perturbation the logits ``(n, k)`` of all images, in the order of the batches."""
        return [self.logits(v, batches) for v in vs]


@dataclass(frozen=True, slots=True)
class Deck:
    """Some images of an array, with what the classifier says of them when clean.

    Attributes:
        name: Name of the array that the replicas hold.
        rows: Rows of it, int64 ``(n,)``.
        reference: Classes predicted for the clean images, int64 ``(n,)``.
    """

    name: str
    rows: NDArray[np.int64]
    reference: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def in_turn(self) -> list[Batch]:
        """Return batches that visit the images once, in their order; the last may be smaller."""
        return in_turn(self.name, self.rows)

    def spread(self, count: int) -> "Deck":
        """Return so many of the images at most, evenly spaced."""
        places = spread(len(self), count)
        return Deck(self.name, self.rows[places], self.reference[places])

    def order(self, *, seed: int, epoch: int) -> NDArray[np.int64]:
        """Return in which order a pass visits the images, as places in the deck."""
        return np.random.default_rng((seed, epoch)).permutation(len(self))

    def shuffled(self, *, batch_size: int, seed: int, epoch: int) -> list[Batch]:
        """Return one pass over the images in random order, in batches of equal size.

        The order follows from the seed and the epoch alone. Images that do not fill a last batch are left out
        of this pass; fewer images than one batch make one smaller batch.
        """
        order = self.order(seed=seed, epoch=epoch)
        size = min(batch_size, len(order))
        whole = len(order) - len(order) % size
        return self.dealt(order[:whole], size)

    def dealt(self, places: NDArray[np.int64], batch_size: int) -> list[Batch]:
        """Return the images at some places in batches of equal size, in that order."""
        parts = places.reshape(-1, batch_size)
        return [Batch(self.name, self.rows[part], self.reference[part]) for part in parts]


def predicted(logits: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the predicted classes.

    Raises:
        TrialError: If a logit is not finite; then there is no prediction.
    """
    if not np.isfinite(logits).all():
        rows = int((~np.isfinite(logits).all(axis=1)).sum())
        raise TrialError(f"expected finite logits, got NaN or infinity for {rows} of {len(logits)} images")
    classes: NDArray[np.int64] = logits.argmax(1)
    return classes


def in_turn(name: str, rows: NDArray[np.int64], size: int = FORWARD_BATCH_SIZE) -> list[Batch]:
    """Return batches that visit rows of an array once, in their order, without reference."""
    return [Batch(name, rows[first : first + size]) for first in range(0, len(rows), size)]
